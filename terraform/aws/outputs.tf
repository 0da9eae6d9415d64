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
