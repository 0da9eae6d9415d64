# Where workers run: compute environments of spot and on-demand capacity, and the queue before them.

locals {
  capacities = var.job_queue_arn != null ? {} : merge(
    var.spot_max_cpus > 0 ? { spot = { order = 1, max_cpus = var.spot_max_cpus, ec2 = "SPOT", fargate = "FARGATE_SPOT" } } : {},
    var.on_demand_max_cpus > 0 ? { on-demand = { order = 2, max_cpus = var.on_demand_max_cpus, ec2 = "EC2", fargate = "FARGATE" } } : {},
  )
  own_machines = var.job_queue_arn == null && !local.fargate
}

resource "aws_batch_compute_environment" "workers" {
  for_each                        = local.capacities
  compute_environment_name_prefix = "${var.name}-${each.key}-"
  type                            = "MANAGED"
  service_role                    = var.batch_service_role_arn
  tags                            = local.tags

  compute_resources {
    type                = each.value[var.platform]
    max_vcpus           = each.value.max_cpus
    subnets             = local.subnet_ids
    security_group_ids  = [aws_security_group.this["workers"].id]
    min_vcpus           = local.fargate ? null : 0
    instance_type       = local.fargate ? null : var.instance_types
    instance_role       = local.fargate ? null : aws_iam_instance_profile.machine[0].arn
    allocation_strategy = local.fargate ? null : each.key == "spot" ? "SPOT_PRICE_CAPACITY_OPTIMIZED" : "BEST_FIT_PROGRESSIVE"
    tags                = local.fargate ? null : merge(local.tags, { Name = "${var.name}-${each.key}" })

    dynamic "ec2_configuration" {
      for_each = local.fargate ? [] : [var.worker_gpus > 0 ? "ECS_AL2023_NVIDIA" : "ECS_AL2023"]

      content {
        image_type = ec2_configuration.value
      }
    }

    dynamic "launch_template" {
      for_each = aws_launch_template.machine

      content {
        launch_template_id = launch_template.value.id
        version            = launch_template.value.latest_version
      }
    }
  }

  # A queue cannot be without one, so that a new one must be there before the old one goes.
  lifecycle {
    create_before_destroy = true
  }

  # Batch needs the role to take its machines down.
  depends_on = [aws_iam_role_policy_attachment.machine]
}

# The engine's socket is where the image of ECS has it, /var/run/docker.sock, and workers mount it
# from there: what remains to be set is the disk, how a reclaimed machine ends, and who may ask it
# for its role.
resource "aws_launch_template" "machine" {
  count                  = local.own_machines ? 1 : 0
  name_prefix            = "${var.name}-"
  description            = "Machines of workers"
  update_default_version = true
  tags                   = local.tags

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = var.worker_disk_gb
      encrypted             = "true"
      delete_on_termination = "true"
    }
  }

  # One hop: the machine's role is for its agent. A container of Batch is on the machine's own network
  # and gets it, too, as it would by the engine's socket; the bundles' containers, beside it, do not.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  user_data = base64encode(<<-MIME
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="//"

    --//
    Content-Type: text/x-shellscript; charset="us-ascii"

    #!/bin/sh
    set -eu
    mkdir -p /var/tmp/worker-manager
    # What lies under /var/tmp is swept otherwise, under runs that take long.
    echo 'x /var/tmp/worker-manager' > /etc/tmpfiles.d/worker-manager.conf
    cat >> /etc/ecs/ecs.config <<'ECS'
    ECS_ENABLE_SPOT_INSTANCE_DRAINING=true
    ECS_CONTAINER_STOP_TIMEOUT=90s
    ECS_IMAGE_PULL_BEHAVIOR=once
    ECS

    --//--
  MIME
  )

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_batch_job_queue" "workers" {
  count    = var.job_queue_arn == null ? 1 : 0
  name     = "${var.name}-workers"
  state    = "ENABLED"
  priority = 1
  tags     = local.tags

  # In the order in which the queue fills them: AWS may give them back in it, whatever it was given.
  dynamic "compute_environment_order" {
    for_each = [for key in ["spot", "on-demand"] : key if contains(keys(local.capacities), key)]

    content {
      order               = local.capacities[compute_environment_order.value].order
      compute_environment = aws_batch_compute_environment.workers[compute_environment_order.value].arn
    }
  }

  # A job that can never run would hold the pool below its maximum for ever.
  dynamic "job_state_time_limit_action" {
    for_each = [
      "MISCONFIGURATION:COMPUTE_ENVIRONMENT_MAX_RESOURCE",
      "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT",
      "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY",
    ]

    content {
      action           = "CANCEL"
      state            = "RUNNABLE"
      reason           = job_state_time_limit_action.value
      max_time_seconds = var.waiting_limit_seconds
    }
  }
}
