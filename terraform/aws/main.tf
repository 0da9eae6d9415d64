# What the other files have in common: where we are, what things are called, whose jobs ours are.

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

locals {
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition
  region    = data.aws_region.current.name

  tags = merge({ application = "worker-manager", name = var.name }, var.tags)

  # The mark of the manager's jobs. It is known beforehand, so that permissions can name it, and so
  # that a manager whose disk is lost finds its jobs again.
  owner = substr(sha256("${local.account}/${local.region}/${var.name}"), 0, 16)

  fargate       = var.platform == "fargate"
  job_queue_arn = var.job_queue_arn != null ? var.job_queue_arn : aws_batch_job_queue.workers[0].arn
  # Named by the manager: prefix, owner and pool.
  job_definition_prefix = "bundle-worker"
  job_definition_name   = "${local.job_definition_prefix}-${local.owner}-${var.pool}"
  parameters_arn        = "arn:${local.partition}:ssm:${local.region}:${local.account}:parameter/worker-manager/${local.owner}/${var.pool}"

  options = concat(
    [
      "--server", local.server_url,
      "--pool", var.pool,
      "--min-workers", tostring(var.min_workers),
      "--max-workers", tostring(var.max_workers),
      "--region", local.region,
      "--job-queue", local.job_queue_arn,
      "--job-definition-name", local.job_definition_prefix,
      "--image", local.worker_image,
      "--platform", var.platform,
      "--cpus", tostring(var.worker_cpus),
      "--gpus", tostring(var.worker_gpus),
      "--memory-mb", tostring(var.worker_memory_mb),
      "--execution-role", aws_iam_role.worker_execution.arn,
      "--log-group", aws_cloudwatch_log_group.this["workers"].name,
      "--metrics-port", tostring(local.metrics_port),
    ],
    # There is no engine on Fargate, so that a worker need not be root there.
    local.fargate ? ["--user", "1000", "--worker-work-dir-prefix", "/var/lib/bundle-worker/work"] : [],
    var.worker_role_arn != null ? ["--job-role", var.worker_role_arn] : [],
    var.manager_options,
  )
}
