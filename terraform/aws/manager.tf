# The manager as a service of ECS on Fargate: one task, its home on EFS, its credentials from a secret,
# and an alarm when it does not run.

locals {
  home_directory         = "/var/lib/worker-manager"
  user                   = 1000
  credentials_secret_arn = var.credentials_secret != null ? var.credentials_secret : aws_secretsmanager_secret.credentials[0].arn

  # The mark of our jobs is in the home's file `owner`; a new home gets the one that the roles name.
  start        = <<-SH
    set -eu
    umask 077
    if ! [ -s "$WORKER_MANAGER_HOME/owner" ]; then
      printf '%s\n' '${local.owner}' > "$WORKER_MANAGER_HOME/owner.new"
      mv "$WORKER_MANAGER_HOME/owner.new" "$WORKER_MANAGER_HOME/owner"
    fi
    exec worker-manager aws-batch "$@"
  SH
  metrics_port = 9465
  healthy      = "python3 -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:${local.metrics_port}/healthz\", timeout=10)'"
}

resource "aws_cloudwatch_log_group" "this" {
  #checkov:skip=CKV_AWS_158: AWS's own key encrypts it; there is no secret in it
  #checkov:skip=CKV_AWS_338: log_retention_days is the user's choice
  for_each          = toset(concat(["manager", "workers"], local.own_server ? ["server"] : []))
  name              = "/worker-manager/${var.name}/${each.key}"
  retention_in_days = var.log_retention_days
  tags              = local.tags
}

locals {
  log_configurations = {
    for who, group in aws_cloudwatch_log_group.this : who => {
      logDriver = "awslogs"
      options = {
        awslogs-group         = group.name
        awslogs-region        = local.region
        awslogs-stream-prefix = who
      }
    }
  }
}

# Its value is put there by hand, so that it is in no state, plan or history of Terraform.
resource "aws_secretsmanager_secret" "credentials" {
  #checkov:skip=CKV2_AWS_57: a server of bundles has nothing that AWS could rotate
  count                   = var.credentials_secret == null ? 1 : 0
  name_prefix             = "${var.name}-credentials-"
  description             = "JSON object with ${join(" and ", var.credential_variables)}: whom the manager is at its server"
  recovery_window_in_days = 7
  tags                    = local.tags
}

# The home: ledger, journal, intents of launches. It has no backup: a manager with a new home finds
# its jobs by their mark.

resource "aws_efs_file_system" "home" {
  #checkov:skip=CKV_AWS_184: AWS's own key encrypts it; there is no secret in it
  creation_token   = "${var.name}-home"
  encrypted        = true
  performance_mode = "generalPurpose"
  throughput_mode  = "elastic"
  tags             = merge(local.tags, { Name = "${var.name}-home" })
}

resource "aws_efs_mount_target" "home" {
  count           = local.own_vpc ? local.zones : length(var.subnet_ids)
  file_system_id  = aws_efs_file_system.home.id
  subnet_id       = local.subnet_ids[count.index]
  security_groups = [aws_security_group.this["home"].id]
}

resource "aws_efs_access_point" "home" {
  file_system_id = aws_efs_file_system.home.id
  tags           = merge(local.tags, { Name = "${var.name}-home" })

  posix_user {
    uid = local.user
    gid = local.user
  }

  root_directory {
    path = "/${var.name}"

    creation_info {
      owner_uid   = local.user
      owner_gid   = local.user
      permissions = "0700"
    }
  }
}

# The service

resource "aws_ecs_cluster" "this" {
  name = var.name
  tags = local.tags

  # The alarm reads its count of tasks.
  setting {
    name  = "containerInsights"
    value = "enabled"
  }
}

resource "aws_ecs_task_definition" "manager" {
  family                   = "${var.name}-manager"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 256
  memory                   = 1024
  execution_role_arn       = aws_iam_role.manager_execution.arn
  task_role_arn            = aws_iam_role.manager.arn
  tags                     = local.tags

  container_definitions = jsonencode([{
    name                   = "manager"
    image                  = local.manager_image
    essential              = true
    user                   = "${local.user}:${local.user}"
    readonlyRootFilesystem = true
    entryPoint             = ["/bin/sh", "-c", local.start, "worker-manager"]
    command                = local.options
    environment            = [{ name = "WORKER_MANAGER_HOME", value = local.home_directory }]
    secrets = [
      for variable in var.credential_variables :
      { name = variable, valueFrom = "${local.credentials_secret_arn}:${variable}::" }
    ]
    mountPoints = [{ sourceVolume = "home", containerPath = local.home_directory, readOnly = false }]
    stopTimeout = 60
    healthCheck = {
      command     = ["CMD-SHELL", local.healthy]
      interval    = 60
      timeout     = 30
      retries     = 3
      startPeriod = 120
    }
    logConfiguration = local.log_configurations["manager"]
  }])

  volume {
    name = "home"

    efs_volume_configuration {
      file_system_id     = aws_efs_file_system.home.id
      transit_encryption = "ENABLED"

      authorization_config {
        access_point_id = aws_efs_access_point.home.id
        iam             = "ENABLED"
      }
    }
  }
}

resource "aws_ecs_service" "manager" {
  name                          = "manager"
  cluster                       = aws_ecs_cluster.this.id
  task_definition               = aws_ecs_task_definition.manager.arn
  launch_type                   = "FARGATE"
  desired_count                 = 1
  availability_zone_rebalancing = "DISABLED"
  propagate_tags                = "SERVICE"
  enable_ecs_managed_tags       = true
  tags                          = local.tags

  # The old one ends before the new one starts: one manager at a time has the home. There is no
  # circuit breaker, since it would give up on a first start that comes before image and secret.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  network_configuration {
    subnets          = local.subnet_ids
    security_groups  = [aws_security_group.this["manager"].id]
    assign_public_ip = var.assign_public_ip
  }

  # A task that starts without them fails.
  depends_on = [
    aws_efs_mount_target.home,
    aws_iam_role_policy.manager,
    aws_iam_role_policy.manager_execution,
    aws_iam_role_policy.worker_execution,
  ]
}

resource "aws_cloudwatch_metric_alarm" "manager" {
  alarm_name          = "${var.name}-manager-is-down"
  alarm_description   = "For ten minutes no worker-manager ran: nothing launches workers for ${local.server_url}. Its log is ${aws_cloudwatch_log_group.this["manager"].name}."
  namespace           = "ECS/ContainerInsights"
  metric_name         = "RunningTaskCount"
  dimensions          = { ClusterName = aws_ecs_cluster.this.name, ServiceName = aws_ecs_service.manager.name }
  statistic           = "Maximum"
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  period              = 60
  evaluation_periods  = 10
  treat_missing_data  = "breaching"
  alarm_actions       = var.alarm_actions
  ok_actions          = var.alarm_actions
  tags                = local.tags
}
