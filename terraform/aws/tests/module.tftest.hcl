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
    condition     = [for one in aws_batch_job_queue.workers[0].compute_environment_order : one.order] == [2, 1] || [for one in aws_batch_job_queue.workers[0].compute_environment_order : one.order] == [1, 2]
    error_message = "The queue has an order."
  }
  assert {
    condition     = !strcontains(aws_ecs_task_definition.manager.container_definitions, "secret_string")
    error_message = "A task definition says where a secret is, and nothing of it."
  }
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
    server_url         = "bundles.example.org"
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
    var.server_url, var.name, var.max_workers, var.on_demand_max_cpus, var.worker_memory_mb,
    var.subnet_ids, var.log_retention_days, var.tags,
  ]
}

run "gpus_need_machines_that_have_them" {
  command = plan

  variables {
    worker_gpus = 1
  }

  expect_failures = [var.worker_gpus]
}
