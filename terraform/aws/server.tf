# The server of bundles, where none is given: `bundles serve` as a service of ECS on Fargate behind a
# load balancer. Its database and contents are in database.tf and contents.tf.

locals {
  own_server   = var.server_url == null
  server_url   = local.own_server ? local.balancer_url : var.server_url
  server_port  = 2900
  balancer_url = one([for one in aws_lb.server : var.server_domain != null ? "https://${var.server_domain}" : "http://${one.dns_name}"])

  balancer_port       = var.server_domain != null ? 443 : 80
  balancer_subnet_ids = !var.server_public ? local.subnet_ids : local.own_vpc ? aws_subnet.public[*].id : var.server_public_subnet_ids
}

resource "aws_lb" "server" {
  #checkov:skip=CKV_AWS_91: the server's database knows who did what; a log of requests is a bucket to pay for
  #checkov:skip=CKV_AWS_150: nothing is lost with it; what must not be lost is protected itself
  #checkov:skip=CKV2_AWS_20: with a certificate there is HTTPS and nothing else; without one it is for the VPC alone
  #checkov:skip=CKV2_AWS_28: nobody is let in but by server_client_cidrs, and all answers but /healthz want a token
  count                      = local.own_server ? 1 : 0
  name                       = var.name
  load_balancer_type         = "application"
  internal                   = !var.server_public
  subnets                    = local.balancer_subnet_ids
  security_groups            = [aws_security_group.this["balancer"].id]
  drop_invalid_header_fields = true
  tags                       = local.tags

  # Longer than a client waits for the answer to an upload (300 s) or to a long poll (60 s), shorter
  # than the server keeps idle connections (360 s): else a request would meet one just closed.
  idle_timeout = 330
}

resource "aws_lb_target_group" "server" {
  #checkov:skip=CKV_AWS_378: `bundles serve` speaks HTTP; its security group lets in the balancer alone
  count       = local.own_server ? 1 : 0
  name        = var.name
  port        = local.server_port
  protocol    = "HTTP"
  target_type = "ip"
  vpc_id      = local.vpc_id
  tags        = local.tags

  # The next server starts when this one has ended: whoever waits for an answer asks again.
  deregistration_delay = 15

  health_check {
    path                = "/healthz"
    matcher             = "200"
    interval            = 15
    timeout             = 10
    healthy_threshold   = 2
    unhealthy_threshold = 4
  }
}

resource "aws_lb_listener" "server" {
  #checkov:skip=CKV_AWS_2: without a certificate it is for the VPC alone
  #checkov:skip=CKV_AWS_103: the policy is that of TLS 1.2 and 1.3, where there is a certificate
  count             = local.own_server ? 1 : 0
  load_balancer_arn = aws_lb.server[0].arn
  port              = local.balancer_port
  protocol          = var.server_domain != null ? "HTTPS" : "HTTP"
  certificate_arn   = var.server_certificate_arn
  ssl_policy        = var.server_domain != null ? "ELBSecurityPolicy-TLS13-1-2-2021-06" : null
  tags              = local.tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.server[0].arn
  }
}

# Its home: the lock that keeps it alone, and copies of contents that are in use.
resource "aws_efs_access_point" "server" {
  count          = local.own_server ? 1 : 0
  file_system_id = aws_efs_file_system.home.id
  tags           = merge(local.tags, { Name = "${var.name}-server" })

  posix_user {
    uid = local.user
    gid = local.user
  }

  root_directory {
    path = "/${var.name}-server"

    creation_info {
      owner_uid   = local.user
      owner_gid   = local.user
      permissions = "0700"
    }
  }
}

# The entry point takes other commands than `serve`, too: that is how one asks the server from within.
resource "aws_ecs_task_definition" "server" {
  count                    = local.own_server ? 1 : 0
  family                   = "${var.name}-server"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 1024
  memory                   = 4096
  execution_role_arn       = aws_iam_role.server_execution[0].arn
  task_role_arn            = aws_iam_role.server[0].arn
  tags                     = local.tags

  container_definitions = jsonencode([{
    name                   = "server"
    image                  = local.manager_image
    essential              = true
    user                   = "${local.user}:${local.user}"
    readonlyRootFilesystem = true
    entryPoint             = ["bundles"]
    command = [
      "serve", "--host", "0.0.0.0", "--port", tostring(local.server_port),
      "--database", "postgresql://${aws_db_instance.this[0].username}@${aws_db_instance.this[0].address}:${local.database_port}/${aws_db_instance.this[0].db_name}?sslmode=require",
      "--contents", "s3://${aws_s3_bucket.contents[0].id}/${local.contents_prefix}",
    ]
    environment = [
      { name = "AWS_DEFAULT_REGION", value = local.region },
      { name = "WORKER_MANAGER_HOME", value = local.home_directory },
      { name = "WORKER_MANAGER_SERVER", value = local.server_url },
    ]
    secrets = [
      { name = "PGPASSWORD", valueFrom = "${local.database_secret_arn}:password::" },
      { name = "WORKER_MANAGER_TOKEN", valueFrom = "${local.credentials_secret_arn}:WORKER_MANAGER_TOKEN::" },
    ]
    portMappings     = [{ containerPort = local.server_port, hostPort = local.server_port, protocol = "tcp" }]
    mountPoints      = [{ sourceVolume = "home", containerPath = local.home_directory, readOnly = false }]
    stopTimeout      = 60
    logConfiguration = local.log_configurations["server"]
  }])

  volume {
    name = "home"

    efs_volume_configuration {
      file_system_id     = aws_efs_file_system.home.id
      transit_encryption = "ENABLED"

      authorization_config {
        access_point_id = aws_efs_access_point.server[0].id
        iam             = "ENABLED"
      }
    }
  }
}

resource "aws_ecs_service" "server" {
  count                         = local.own_server ? 1 : 0
  name                          = "server"
  cluster                       = aws_ecs_cluster.this.id
  task_definition               = aws_ecs_task_definition.server[0].arn
  launch_type                   = "FARGATE"
  desired_count                 = 1
  availability_zone_rebalancing = "DISABLED"
  propagate_tags                = "SERVICE"
  enable_ecs_managed_tags       = true
  tags                          = local.tags

  # As for the manager: one server at a time has the home and writes to the database.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  # A new version may have to bring the database up to date first.
  health_check_grace_period_seconds = 300

  load_balancer {
    target_group_arn = aws_lb_target_group.server[0].arn
    container_name   = "server"
    container_port   = local.server_port
  }

  network_configuration {
    subnets          = local.subnet_ids
    security_groups  = [aws_security_group.this["server"].id]
    assign_public_ip = var.assign_public_ip
  }

  # A task that starts without them fails.
  depends_on = [
    aws_efs_mount_target.home,
    aws_iam_role_policy.server,
    aws_iam_role_policy.server_execution,
    aws_lb_listener.server,
    aws_s3_bucket_policy.contents,
  ]
}

resource "aws_cloudwatch_metric_alarm" "server" {
  count               = local.own_server ? 1 : 0
  alarm_name          = "${var.name}-server-is-down"
  alarm_description   = "For ten minutes no server of bundles answered at ${local.server_url}. Its log is ${aws_cloudwatch_log_group.this["server"].name}."
  namespace           = "AWS/ApplicationELB"
  metric_name         = "HealthyHostCount"
  dimensions          = { LoadBalancer = aws_lb.server[0].arn_suffix, TargetGroup = aws_lb_target_group.server[0].arn_suffix }
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
