# What a virtual machine must be told so that it runs the manager: the text for its cloud-init. Makes
# nothing in any cloud; terraform/azure and terraform/gcp use it.
#
# The home is a disk of its own, so that ledger and journal outlive the machine; systemd starts the
# manager anew whatever ended it, with credentials that are fetched at each start and are in no file.

terraform {
  required_version = ">= 1.9"
}

variable "name" {
  description = "What the machine's log is to say this is."
  type        = string
}

variable "image" {
  description = "Image of the manager."
  type        = string
}

variable "options" {
  description = "The backend, and options of `worker-manager`."
  type        = list(string)
}

variable "owner" {
  description = "The mark of the manager's jobs."
  type        = string
}

variable "home_device" {
  description = "Path of the disk that is the home. It is given a file system if it has none."
  type        = string
}

variable "credentials_program" {
  description = "Python, with a function `credentials` that returns the manager's environment variables."
  type        = string
}

variable "environment" {
  description = "Environment variables of the manager and of that program. No secrets."
  type        = map(string)
}

variable "metrics_port" {
  description = "Where the manager serves /healthz."
  type        = number
}

variable "login_commands" {
  description = "Shell commands by which Docker gets to the image."
  type        = list(string)
  default     = []
}

variable "open_commands" {
  description = "Shell commands that let the cloud's health check in."
  type        = list(string)
  default     = []
}

variable "packages" {
  description = "What the machine's image lacks."
  type        = list(string)
  default     = []
}

locals {
  directory      = "/etc/worker-manager"
  home           = "/mnt/disks/worker-manager"
  container_home = "/var/lib/worker-manager"
  user           = 1000

  # So that no value can become another word or command of the shell's.
  quoted_options = join(" ", [for option in var.options : "'${replace(option, "'", "'\\''")}'"])
  quoted_environment = join(" ", [
    for name, value in merge(var.environment, { WORKER_MANAGER_HOME = local.container_home }) :
    "--env '${name}=${replace(value, "'", "'\\''")}'"
  ])

  files = {
    "home.sh" = file("${path.module}/home.sh")

    "start.py" = file("${path.module}/start.py")

    "credentials.py" = var.credentials_program

    "run.sh" = <<-SH
      #!/bin/sh
      # Runs the manager until it ends.
      set -eu
      ${join("\n", concat(var.login_commands, var.open_commands))}
      docker pull --quiet '${var.image}'
      docker rm --force worker-manager > /dev/null 2>&1 || true
      exec docker run --rm --name worker-manager --network host --user ${local.user}:${local.user} \
        --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --volume ${local.home}:${local.container_home} --volume ${local.directory}:${local.directory}:ro \
        ${local.quoted_environment} --entrypoint python3 '${var.image}' \
        ${local.directory}/start.py '${var.owner}' ${local.quoted_options}
    SH
  }

  units = {
    "worker-manager.service" = <<-UNIT
      [Unit]
      Description=worker-manager ${var.name}
      Wants=network-online.target
      After=docker.service network-online.target

      [Service]
      Environment=HOME=/var/lib/worker-manager-service
      StateDirectory=worker-manager-service
      StateDirectoryMode=0700
      ExecStartPre=/bin/sh ${local.directory}/home.sh ${var.home_device} ${local.home} ${local.user}
      ExecStart=/bin/sh ${local.directory}/run.sh
      ExecStop=/usr/bin/docker stop --time 60 worker-manager
      SyslogIdentifier=worker-manager
      TimeoutStartSec=300
      TimeoutStopSec=90
      Restart=always
      RestartSec=30

      [Install]
      WantedBy=multi-user.target
    UNIT

    # One line a minute that all is well: that there is none is worth an alarm.
    "worker-manager-health.service" = <<-UNIT
      [Unit]
      Description=Whether worker-manager ${var.name} is alive

      [Service]
      Type=oneshot
      ExecStart=/usr/bin/curl --silent --show-error --fail --max-time 10 http://127.0.0.1:${var.metrics_port}/healthz
      SyslogIdentifier=worker-manager-health
    UNIT

    "worker-manager-health.timer" = <<-UNIT
      [Timer]
      OnBootSec=60
      OnUnitActiveSec=60

      [Install]
      WantedBy=timers.target
    UNIT
  }

  # An empty list of packages is not allowed.
  package_config = { for key, value in { packages = var.packages, package_update = true } : key => value if length(var.packages) > 0 }
  written_files = concat(
    [for name, content in local.files : { path = "${local.directory}/${name}", permissions = "0644", content = content }],
    [for name, content in local.units : { path = "/etc/systemd/system/${name}", permissions = "0644", content = content }],
  )
  commands = [
    ["systemctl", "daemon-reload"],
    ["systemctl", "enable", "--now", "--no-block", "worker-manager.service", "worker-manager-health.timer"],
  ]
  # yamlencode quotes everything: no value can become another key.
  cloud_config = yamlencode(merge(local.package_config, { write_files = local.written_files, runcmd = local.commands }))
}

output "cloud_config" {
  description = "For cloud-init. There is no secret in it."
  value       = "#cloud-config\n${local.cloud_config}"
}
