output "server_url" {
  description = "Address of the server of bundles: the one that was given, or the one that was made."
  value       = local.server_url
}

output "server_balancer" {
  description = "What the name `server_domain` must lead to, where the server was made here: a load balancer's own name."
  value       = one(aws_lb.server[*].dns_name)
}

output "server_service" {
  description = "The server as a service of ECS, where it was made here: cluster and service."
  value       = one([for one in aws_ecs_service.server : { cluster = aws_ecs_cluster.this.name, service = one.name }])
}

output "server_identity" {
  description = "Who the server is, where it was made here: its role."
  value       = one(aws_iam_role.server[*].arn)
}

output "server_log" {
  description = "Where what the server prints is, where it was made here: a log group."
  value       = local.own_server ? aws_cloudwatch_log_group.this["server"].name : null
}

output "contents_bucket" {
  description = "The bucket of what bundles contain, where the server was made here."
  value       = one(aws_s3_bucket.contents[*].id)
}

output "database_address" {
  description = "The host of the server's database, where it was made here."
  value       = one(aws_db_instance.this[*].address)
}

output "database_secret" {
  description = "The secret in which RDS keeps the database's user and password, where it was made here."
  value       = local.database_secret_arn
}

output "manager_options" {
  description = "All options of `worker-manager aws-batch`, as the service runs it."
  value       = local.options
}

output "owner" {
  description = "The mark of the manager's jobs: what the file `owner` of its home has."
  value       = local.owner
}

output "job_queue_arn" {
  description = "The queue that workers are submitted to."
  value       = local.job_queue_arn
}

output "manager_identity" {
  description = "Who the manager is: its role."
  value       = aws_iam_role.manager.arn
}

output "worker_identity" {
  description = "Who starts workers, and hands them their credentials: a role."
  value       = aws_iam_role.worker_execution.arn
}

output "manager_image" {
  description = "The image of the manager: push it where it is in a repository made here."
  value       = local.manager_image
}

output "worker_image" {
  description = "The image of workers: push it where it is in a repository made here."
  value       = local.worker_image
}

output "credentials_secret" {
  description = "The secret with the manager's credentials: put its value there where it was made here."
  value       = local.credentials_secret_arn
}

output "manager_log" {
  description = "Where what the manager prints is: a log group."
  value       = aws_cloudwatch_log_group.this["manager"].name
}

output "worker_log" {
  description = "Where what workers print is: a log group."
  value       = aws_cloudwatch_log_group.this["workers"].name
}

output "manager_service" {
  description = "The manager as a service of ECS: cluster and service."
  value       = { cluster = aws_ecs_cluster.this.name, service = aws_ecs_service.manager.name }
}

output "vpc_id" {
  description = "The VPC of manager and workers."
  value       = local.vpc_id
}

output "subnet_ids" {
  description = "The subnets of manager and workers."
  value       = local.subnet_ids
}

output "worker_security_group_id" {
  description = "Whom a server's security group must let in, beside the manager's: workers."
  value       = aws_security_group.this["workers"].id
}

output "manager_security_group_id" {
  description = "Whom a server's security group must let in, beside the workers': the manager."
  value       = aws_security_group.this["manager"].id
}
