# Who may do what. The manager may submit to its queue, with its mark, from its own job definitions,
# and end what carries its mark.

data "aws_iam_policy_document" "trust" {
  for_each = { machine = "ec2.amazonaws.com", task = "ecs-tasks.amazonaws.com" }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = [each.value]
    }

    # ECS names the account for which it takes on a role, so that no other one can make it do so.
    dynamic "condition" {
      for_each = each.key == "task" ? [local.account] : []

      content {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [condition.value]
      }
    }
  }
}

# Machines of EC2

resource "aws_iam_role" "machine" {
  count              = local.own_machines ? 1 : 0
  name_prefix        = "${var.name}-"
  description        = "Machines of workers: the agent of ECS"
  assume_role_policy = data.aws_iam_policy_document.trust["machine"].json
  tags               = local.tags
}

resource "aws_iam_role_policy_attachment" "machine" {
  count      = local.own_machines ? 1 : 0
  role       = aws_iam_role.machine[0].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "machine" {
  count       = local.own_machines ? 1 : 0
  name_prefix = "${var.name}-"
  role        = aws_iam_role.machine[0].name
  tags        = local.tags
}

# What starts containers: fetches image and credentials, opens the log

data "aws_iam_policy_document" "execution" {
  for_each = merge(
    { manager = { log_group = "manager", image = "manager" }, worker = { log_group = "workers", image = "worker" } },
    local.own_server ? { server = { log_group = "server", image = "manager" } } : {},
  )

  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this[each.value.log_group].arn}:*"]
  }

  dynamic "statement" {
    for_each = local.repository_arns[each.value.image]

    content {
      actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
      resources = [statement.value]
    }
  }

  dynamic "statement" {
    for_each = local.repository_arns[each.value.image]

    content {
      actions   = ["ecr:GetAuthorizationToken"]
      resources = ["*"] # it is of no repository
    }
  }
}

resource "aws_iam_role" "manager_execution" {
  name_prefix        = "${var.name}-"
  description        = "Starts the manager"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
  tags               = local.tags
}

resource "aws_iam_role_policy" "manager_execution" {
  name   = "start-manager"
  role   = aws_iam_role.manager_execution.id
  policy = data.aws_iam_policy_document.manager_execution.json
}

data "aws_iam_policy_document" "manager_execution" {
  source_policy_documents = [data.aws_iam_policy_document.execution["manager"].json]

  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [local.credentials_secret_arn]
  }
}

resource "aws_iam_role" "worker_execution" {
  name_prefix        = "${var.name}-"
  description        = "Starts workers"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
  tags               = local.tags
}

resource "aws_iam_role_policy" "worker_execution" {
  name   = "start-workers"
  role   = aws_iam_role.worker_execution.id
  policy = data.aws_iam_policy_document.worker_execution.json
}

data "aws_iam_policy_document" "worker_execution" {
  source_policy_documents = [data.aws_iam_policy_document.execution["worker"].json]

  statement {
    actions   = ["ssm:GetParameters"]
    resources = ["${local.parameters_arn}/*"]
  }
}

resource "aws_iam_role" "server_execution" {
  count              = local.own_server ? 1 : 0
  name_prefix        = "${var.name}-"
  description        = "Starts the server"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
  tags               = local.tags
}

resource "aws_iam_role_policy" "server_execution" {
  count  = local.own_server ? 1 : 0
  name   = "start-server"
  role   = aws_iam_role.server_execution[0].id
  policy = data.aws_iam_policy_document.server_execution[0].json
}

data "aws_iam_policy_document" "server_execution" {
  count                   = local.own_server ? 1 : 0
  source_policy_documents = [data.aws_iam_policy_document.execution["server"].json]

  statement {
    actions   = ["secretsmanager:GetSecretValue"]
    resources = [local.credentials_secret_arn, local.database_secret_arn]
  }
}

# The server itself

resource "aws_iam_role" "server" {
  count              = local.own_server ? 1 : 0
  name_prefix        = "${var.name}-"
  description        = "The server"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
  tags               = local.tags
}

resource "aws_iam_role_policy" "server" {
  count  = local.own_server ? 1 : 0
  name   = "keep-contents"
  role   = aws_iam_role.server[0].id
  policy = data.aws_iam_policy_document.server[0].json
}

data "aws_iam_policy_document" "server" {
  count = local.own_server ? 1 : 0

  statement {
    sid = "KeepContents"
    actions = [
      "s3:AbortMultipartUpload",
      "s3:DeleteObject",
      "s3:GetObject",
      "s3:PutObject",
    ]
    resources = ["${aws_s3_bucket.contents[0].arn}/${local.contents_prefix}/*"]
  }

  # Not only below the prefix: S3 would then answer that an object is forbidden where it is missing.
  statement {
    sid       = "ListContents"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.contents[0].arn]
  }

  statement {
    sid       = "KeepItsHome"
    actions   = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]
    resources = [aws_efs_file_system.home.arn]

    condition {
      test     = "StringEquals"
      variable = "elasticfilesystem:AccessPointArn"
      values   = [aws_efs_access_point.server[0].arn]
    }
  }
}

# The manager itself

resource "aws_iam_role" "manager" {
  name_prefix        = "${var.name}-"
  description        = "The manager"
  assume_role_policy = data.aws_iam_policy_document.trust["task"].json
  tags               = local.tags
}

resource "aws_iam_role_policy" "manager" {
  name   = "keep-workers"
  role   = aws_iam_role.manager.id
  policy = data.aws_iam_policy_document.manager.json
}

data "aws_iam_policy_document" "manager" {
  statement {
    sid = "Look"
    actions = [
      "batch:DescribeComputeEnvironments",
      "batch:DescribeJobDefinitions",
      "batch:DescribeJobQueues",
      "batch:DescribeJobs",
      "batch:ListJobs",
      "logs:DescribeLogGroups",
    ]
    resources = ["*"] # AWS knows no narrower permission for these
  }

  statement {
    sid       = "SubmitToItsQueue"
    actions   = ["batch:SubmitJob"]
    resources = [local.job_queue_arn, local.job_definition_arn, "${local.job_definition_arn}:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/worker-manager-owner"
      values   = [local.owner]
    }
  }

  statement {
    sid       = "DefineItsJobs"
    actions   = ["batch:RegisterJobDefinition"]
    resources = [local.job_definition_arn, "${local.job_definition_arn}:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/worker-manager-owner"
      values   = [local.owner]
    }
  }

  statement {
    sid       = "MarkItsDefinitions"
    actions   = ["batch:TagResource"]
    resources = [local.job_definition_arn, "${local.job_definition_arn}:*"]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/worker-manager-owner"
      values   = [local.owner]
    }
  }

  # Tags come with the submission, when a job has none yet: another manager's cannot be made ours.
  statement {
    sid       = "MarkItsJobs"
    actions   = ["batch:TagResource"]
    resources = [local.job_arn]

    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/worker-manager-owner"
      values   = [local.owner]
    }

    condition {
      test     = "Null"
      variable = "aws:ResourceTag/worker-manager-owner"
      values   = ["true"]
    }
  }

  statement {
    sid       = "EndItsJobs"
    actions   = ["batch:TerminateJob"]
    resources = [local.job_arn]

    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/worker-manager-owner"
      values   = [local.owner]
    }
  }

  statement {
    sid       = "HandRolesToWorkers"
    actions   = ["iam:PassRole"]
    resources = local.worker_role_arns

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["batch.amazonaws.com", "ecs-tasks.amazonaws.com"]
    }
  }

  statement {
    sid       = "CheckRoles"
    actions   = ["iam:GetRole"]
    resources = local.worker_role_arns
  }

  statement {
    sid       = "KeepWorkersCredentials"
    actions   = ["ssm:PutParameter"]
    resources = ["${local.parameters_arn}/*"]
  }

  statement {
    sid       = "ReadWorkersLogs"
    actions   = ["logs:GetLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this["workers"].arn}:*"]
  }

  dynamic "statement" {
    for_each = local.repository_arns["worker"]

    content {
      sid       = "CheckImage"
      actions   = ["ecr:DescribeImages"]
      resources = [statement.value]
    }
  }

  statement {
    sid       = "KeepItsHome"
    actions   = ["elasticfilesystem:ClientMount", "elasticfilesystem:ClientWrite"]
    resources = [aws_efs_file_system.home.arn]

    condition {
      test     = "StringEquals"
      variable = "elasticfilesystem:AccessPointArn"
      values   = [aws_efs_access_point.home.arn]
    }
  }
}

locals {
  job_arn            = "arn:${local.partition}:batch:${local.region}:${local.account}:job/*"
  job_definition_arn = "arn:${local.partition}:batch:${local.region}:${local.account}:job-definition/${local.job_definition_name}"
  worker_role_arns   = compact([aws_iam_role.worker_execution.arn, var.worker_role_arn])
}
