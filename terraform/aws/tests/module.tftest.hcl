# What the module makes of its variables, with a stand-in for AWS.

mock_provider "aws" {
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_region" {
    defaults = { name = "eu-west-1" }
  }
  mock_data "aws_availability_zones" {
    defaults = { names = ["eu-west-1a", "eu-west-1b", "eu-west-1c"] }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{}" }
  }
  mock_resource "aws_iam_role" {
    defaults = { arn = "arn:aws:iam::123456789012:role/mock" }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/mock" }
  }
  mock_resource "aws_launch_template" {
    defaults = { id = "lt-0123456789abcdef0", latest_version = 1 }
  }
  mock_resource "aws_batch_compute_environment" {
    defaults = { arn = "arn:aws:batch:eu-west-1:123456789012:compute-environment/mock" }
  }
  mock_resource "aws_batch_job_queue" {
    defaults = { arn = "arn:aws:batch:eu-west-1:123456789012:job-queue/mock" }
  }
  mock_resource "aws_ecr_repository" {
    defaults = {
      arn            = "arn:aws:ecr:eu-west-1:123456789012:repository/mock"
      repository_url = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/mock"
    }
  }
  mock_resource "aws_secretsmanager_secret" {
    defaults = { arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:mock" }
  }
  mock_resource "aws_cloudwatch_log_group" {
    defaults = { arn = "arn:aws:logs:eu-west-1:123456789012:log-group:mock" }
  }
  mock_resource "aws_efs_file_system" {
    defaults = { arn = "arn:aws:elasticfilesystem:eu-west-1:123456789012:file-system/fs-1", id = "fs-0123456789abcdef0" }
  }
  mock_resource "aws_efs_access_point" {
    defaults = { arn = "arn:aws:elasticfilesystem:eu-west-1:123456789012:access-point/fsap-1", id = "fsap-0123456789abcdef0" }
  }
  mock_resource "aws_ecs_task_definition" {
    defaults = { arn = "arn:aws:ecs:eu-west-1:123456789012:task-definition/mock:1" }
  }
  mock_resource "aws_lb" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:loadbalancer/app/mock/1", dns_name = "mock.elb.amazonaws.com" }
  }
  mock_resource "aws_lb_target_group" {
    defaults = { arn = "arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/mock/1" }
  }
  mock_resource "aws_s3_bucket" {
    defaults = { arn = "arn:aws:s3:::mock", id = "mock" }
  }
  mock_resource "aws_db_instance" {
    defaults = {
      address            = "mock.rds.amazonaws.com"
      master_user_secret = [{ secret_arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds" }]
    }
  }
  mock_resource "aws_eip" {
    defaults = { public_ip = "203.0.113.7" }
  }
}

variables {
  server_url = "https://bundles.example.org"
}

run "everything_from_nothing" {
  assert {
    condition     = length(aws_vpc.this) == 1 && length(aws_batch_job_queue.workers) == 1
    error_message = "A VPC and a queue are made where none is given."
  }
  assert {
    condition     = toset([for one in aws_batch_compute_environment.workers : one.compute_resources[0].type]) == toset(["SPOT", "EC2"])
    error_message = "There are spot and on-demand machines."
  }
  assert {
    condition     = [for one in aws_batch_job_queue.workers[0].compute_environment_order : one.order] == [1, 2]
    error_message = "The queue has an order, and is told it in that order."
  }
  assert {
    condition     = !strcontains(aws_ecs_task_definition.manager.container_definitions, "secret_string")
    error_message = "A task definition says where a secret is, and nothing of it."
  }
  assert {
    condition     = length(aws_ecs_service.server) + length(aws_db_instance.this) + length(aws_s3_bucket.contents) + length(aws_lb.server) == 0
    error_message = "There is no server beside the one that is given."
  }
}

run "a_server_is_made_where_none_is_given" {
  variables {
    name       = "served"
    server_url = null
  }

  assert {
    condition = alltrue([
      for one in concat(
        values(aws_security_group.this), values(aws_vpc_security_group_ingress_rule.server), values(aws_vpc_security_group_egress_rule.out),
        [aws_vpc_security_group_ingress_rule.home], aws_vpc_security_group_egress_rule.balancer, aws_vpc_security_group_ingress_rule.nat,
      ) : can(regex("^[a-zA-Z0-9. _:/()#,@\\[\\]+=&;{}!$*-]{1,255}$", one.description))
    ])
    error_message = "EC2 takes these letters alone in descriptions."
  }
  assert {
    condition = jsondecode(aws_ecs_task_definition.server[0].container_definitions)[0].command == [
      "serve", "--host", "0.0.0.0", "--port", "2900",
      "--database", "postgresql://bundles@mock.rds.amazonaws.com:5432/bundles?sslmode=require",
      "--contents", "s3://mock/contents",
    ]
    error_message = "The server is told its database and its bucket, and no password."
  }
  assert {
    condition = { for secret in jsondecode(aws_ecs_task_definition.server[0].container_definitions)[0].secrets : secret.name => secret.valueFrom } == {
      PGPASSWORD           = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:rds:password::"
      WORKER_MANAGER_TOKEN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:mock:WORKER_MANAGER_TOKEN::"
    }
    error_message = "Server and manager have the same token; the password is the one that RDS made."
  }
  assert {
    condition     = output.server_url == "http://mock.elb.amazonaws.com" && slice(output.manager_options, 0, 2) == ["--server", "http://mock.elb.amazonaws.com"]
    error_message = "The manager is told where the balancer is."
  }
  assert {
    condition     = aws_lb.server[0].internal && aws_lb_listener.server[0].protocol == "HTTP" && length(aws_vpc_security_group_ingress_rule.client) == 0
    error_message = "Without a certificate the server is for the VPC alone."
  }
  assert {
    condition     = aws_lb.server[0].idle_timeout > 300 && aws_lb.server[0].idle_timeout < 360
    error_message = "The balancer waits longer than clients do, and shorter than the server keeps connections."
  }
  assert {
    condition     = aws_db_instance.this[0].deletion_protection && !aws_s3_bucket.contents[0].force_destroy
    error_message = "Neither database nor contents go by accident."
  }
  assert {
    condition     = [aws_ecs_service.server[0].deployment_minimum_healthy_percent, aws_ecs_service.server[0].deployment_maximum_percent] == [0, 100]
    error_message = "There is one server at a time."
  }
}

run "a_public_server_has_a_certificate_and_its_own_may_reach_it" {
  variables {
    name                   = "public"
    server_url             = null
    server_domain          = "bundles.example.org"
    server_certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/1"
    server_public          = true
    server_client_cidrs    = ["198.51.100.0/24"]
  }

  assert {
    condition     = output.server_url == "https://bundles.example.org" && aws_lb_listener.server[0].protocol == "HTTPS" && aws_lb_listener.server[0].port == 443
    error_message = "There is HTTPS, at the certificate's name, and nothing else."
  }
  assert {
    condition     = !aws_lb.server[0].internal && length(aws_subnet.public) == 2
    error_message = "A public balancer is in two public subnets."
  }
  assert {
    condition     = aws_vpc_security_group_ingress_rule.nat[0].cidr_ipv4 == "203.0.113.7/32" && keys(aws_vpc_security_group_ingress_rule.client) == ["198.51.100.0/24"]
    error_message = "Clients may ask, and what comes by the NAT gateway."
  }
}

run "a_server_that_nobody_could_trust_or_reach_is_refused" {
  command = plan

  variables {
    server_url              = null
    server_domain           = "https://bundles.example.org"
    server_client_cidrs     = ["everybody"]
    credential_variables    = ["CODALAB_USERNAME", "CODALAB_PASSWORD"]
    database_instance_class = "t4g.small"
  }

  expect_failures = [
    var.server_domain, var.server_client_cidrs, var.credential_variables, var.database_instance_class,
  ]
}

run "a_public_server_without_a_certificate_and_one_zone_are_refused" {
  command = plan

  variables {
    server_url    = null
    server_public = true
    vpc_id        = "vpc-1"
    subnet_ids    = ["subnet-1"]
  }

  expect_failures = [var.server_public, var.subnet_ids]
}

run "a_public_server_in_a_given_network_needs_its_public_subnets" {
  command = plan

  variables {
    server_url             = null
    server_domain          = "bundles.example.org"
    server_certificate_arn = "arn:aws:acm:eu-west-1:123456789012:certificate/1"
    server_public          = true
    vpc_id                 = "vpc-1"
    subnet_ids             = ["subnet-1", "subnet-2"]
  }

  expect_failures = [var.server_public_subnet_ids]
}

run "a_new_owner_for_each_name" {
  command = plan

  variables {
    name = "another"
  }

  assert {
    condition     = output.owner != run.everything_from_nothing.owner && can(regex("^[0-9a-f]{16}$", output.owner))
    error_message = "The mark is 16 hex digits, another for each name."
  }
}

run "fargate_has_neither_machines_nor_root" {
  variables {
    name     = "fargate"
    platform = "fargate"
  }

  assert {
    condition     = length(aws_launch_template.machine) == 0 && length(aws_iam_role.machine) == 0
    error_message = "Fargate needs no machines."
  }
  assert {
    condition     = strcontains(join(" ", output.manager_options), "--user 1000")
    error_message = "Workers on Fargate are not root."
  }
}

run "what_is_there_is_used" {
  variables {
    name               = "existing"
    vpc_id             = "vpc-1"
    subnet_ids         = ["subnet-1", "subnet-2"]
    job_queue_arn      = "arn:aws:batch:eu-west-1:123456789012:job-queue/theirs"
    worker_image       = "210987654321.dkr.ecr.eu-west-1.amazonaws.com/their/worker:7"
    manager_image      = "ghcr.io/example/worker-manager:1"
    credentials_secret = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:theirs"
  }

  assert {
    condition     = length(aws_vpc.this) + length(aws_batch_job_queue.workers) + length(aws_batch_compute_environment.workers) == 0
    error_message = "No network, queue or machines are made."
  }
  assert {
    condition     = length(aws_ecr_repository.this) + length(aws_secretsmanager_secret.credentials) == 0
    error_message = "No repository and no secret is made."
  }
  assert {
    condition     = output.job_queue_arn == "arn:aws:batch:eu-west-1:123456789012:job-queue/theirs"
    error_message = "The given queue is used."
  }
  assert {
    condition     = local.repository_arns["worker"][0] == "arn:aws:ecr:eu-west-1:210987654321:repository/their/worker" && length(local.repository_arns["manager"]) == 0
    error_message = "The repository of a given image is known by its name."
  }
}

run "values_that_make_no_sense_are_refused" {
  command = plan

  variables {
    name               = "Worker Manager"
    max_workers        = -1
    spot_max_cpus      = 0
    on_demand_max_cpus = 0
    worker_memory_mb   = 100
    subnet_ids         = ["subnet-1"]
    log_retention_days = 31
    tags               = { worker-manager-owner = "me" }
  }

  expect_failures = [
    var.name, var.max_workers, var.on_demand_max_cpus, var.worker_memory_mb,
    var.subnet_ids, var.log_retention_days, var.tags,
  ]
}

run "names_that_a_registry_or_database_cannot_have_are_refused" {
  command = plan

  variables {
    name = "two--hyphens"
  }

  expect_failures = [var.name]
}

run "workers_on_fargate_have_no_public_addresses" {
  command = plan

  variables {
    platform         = "fargate"
    assign_public_ip = true
  }

  expect_failures = [var.assign_public_ip]
}

run "the_address_of_a_server_is_one" {
  command = plan

  variables {
    server_url = "bundles.example.org"
  }

  expect_failures = [var.server_url]
}

run "gpus_need_machines_that_have_them" {
  command = plan

  variables {
    worker_gpus = 1
  }

  expect_failures = [var.worker_gpus]
}
