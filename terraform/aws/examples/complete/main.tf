# A research group's server and pool in a network that is there: the server on the internet by HTTPS,
# for the group's addresses; larger workers, their own role, an alarm by mail.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.80"
    }
  }
}

variable "region" {
  description = "Where all of it is made."
  type        = string
  default     = "us-east-1"
}

variable "server_domain" {
  description = "The server's name, such as bundles.example.org."
  type        = string
}

variable "zone_id" {
  description = "The zone of Route 53 that the name is in."
  type        = string
}

variable "client_cidrs" {
  description = "Addresses from which the group works."
  type        = list(string)
}

variable "vpc_id" {
  description = "The network."
  type        = string
}

variable "subnet_ids" {
  description = "Its private subnets, one a zone."
  type        = list(string)
}

variable "public_subnet_ids" {
  description = "Its public subnets, one a zone."
  type        = list(string)
}

variable "nat_address" {
  description = "Where the private subnets come from on the internet: the address of their NAT gateway."
  type        = string
}

variable "batch_service_role_arn" {
  description = "The role by which AWS Batch makes machines, where the service-linked one may not be used."
  type        = string
  default     = null
}

variable "mail_address" {
  description = "Who is told when the manager is down."
  type        = string
}

provider "aws" {
  region = var.region

  default_tags {
    tags = { project = "protein-folding" }
  }
}

resource "aws_sns_topic" "alarms" {
  #checkov:skip=CKV_AWS_26: an alarm of CloudWatch may not use the key of AWS for topics; it says no secret
  name = "folding-alarms"
}

resource "aws_sns_topic_subscription" "mail" {
  topic_arn = aws_sns_topic.alarms.arn
  protocol  = "email"
  endpoint  = var.mail_address
}

resource "aws_acm_certificate" "server" {
  domain_name       = var.server_domain
  validation_method = "DNS"

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_route53_record" "proof" {
  zone_id = var.zone_id
  name    = one([for one in aws_acm_certificate.server.domain_validation_options : one.resource_record_name])
  type    = one([for one in aws_acm_certificate.server.domain_validation_options : one.resource_record_type])
  records = [for one in aws_acm_certificate.server.domain_validation_options : one.resource_record_value]
  ttl     = 300
}

resource "aws_acm_certificate_validation" "server" {
  certificate_arn         = aws_acm_certificate.server.arn
  validation_record_fqdns = [aws_route53_record.proof.fqdn]
}

resource "aws_route53_record" "server" {
  zone_id = var.zone_id
  name    = var.server_domain
  type    = "CNAME"
  records = [module.worker_manager.server_balancer]
  ttl     = 300
}

# Workers may read the group's data.
resource "aws_iam_role" "worker" {
  name_prefix = "folding-worker-"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRole"
      Principal = { Service = "ecs-tasks.amazonaws.com" }
    }]
  })
}

resource "aws_iam_role_policy" "worker" {
  name = "read-data"
  role = aws_iam_role.worker.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect   = "Allow"
      Action   = ["s3:GetObject"]
      Resource = "arn:aws:s3:::folding-data/*"
    }]
  })
}

module "worker_manager" {
  source = "../.."

  name = "folding"
  pool = "folding"
  tags = { cost-centre = "4711" }

  server_domain            = var.server_domain
  server_certificate_arn   = coalesce(aws_acm_certificate_validation.server.certificate_arn)
  server_public            = true
  server_public_subnet_ids = var.public_subnet_ids
  server_client_cidrs      = concat(["${var.nat_address}/32"], var.client_cidrs)
  database_instance_class  = "db.m7g.large"
  database_multi_zone      = true

  vpc_id     = var.vpc_id
  subnet_ids = var.subnet_ids

  min_workers        = 1
  max_workers        = 200
  worker_cpus        = 4
  worker_memory_mb   = 15000
  worker_disk_gb     = 500
  worker_role_arn    = aws_iam_role.worker.arn
  instance_types     = ["m6i", "m6a", "m7i"]
  spot_max_cpus      = 800
  on_demand_max_cpus = 64

  batch_service_role_arn = var.batch_service_role_arn
  manager_options        = ["--worker-idle-seconds", "300", "--attempts", "3"]
  log_retention_days     = 90
  alarm_actions          = [aws_sns_topic.alarms.arn]
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
