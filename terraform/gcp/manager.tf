# The manager: a managed group of one instance, its home on a disk that every next instance gets, and
# an alarm for when it had to be made anew.
#
# Not Cloud Run: it has no disk, and mounts NFS without locks, which a ledger needs.

locals {
  metrics_port = 9465
}

module "machine" {
  source = "../machine"

  name                = var.name
  image               = local.manager_image
  options             = concat(["gcp-batch"], local.options)
  owner               = local.owner
  home_device         = "/dev/disk/by-id/google-home"
  credentials_program = file("${path.module}/files/credentials.py")
  metrics_port        = local.metrics_port
  environment         = { CREDENTIALS_SECRET = local.credentials_secret }
  login_commands = [
    for registry in local.registries : "docker-credential-gcr configure-docker --registries=${registry}"
  ]
  # Container-Optimized OS lets nobody in but SSH.
  open_commands = [
    "iptables --wait --check INPUT --protocol tcp --dport ${local.metrics_port} --jump ACCEPT 2> /dev/null ||",
    "  iptables --wait --append INPUT --protocol tcp --dport ${local.metrics_port} --jump ACCEPT",
  ]
}

data "google_compute_image" "cos" {
  project    = "cos-cloud"
  family     = "cos-stable"
  depends_on = [google_project_service.this]
}

resource "google_compute_instance_template" "manager" {
  project      = var.project
  name_prefix  = "${var.name}-manager-"
  description  = "worker-manager for ${var.server_url}"
  region       = var.region
  machine_type = "e2-small"
  tags         = [local.manager_tag]
  labels       = local.labels

  metadata = {
    user-data              = module.machine.cloud_config
    google-logging-enabled = "true"
    enable-oslogin         = "true"
    block-project-ssh-keys = "true"
  }

  disk {
    boot         = true
    source_image = data.google_compute_image.cos.self_link
    disk_size_gb = 10
    disk_type    = "pd-balanced"
    labels       = local.labels
  }

  # The home: ledger, journal, intents of launches. It stays when the instance is made anew. A manager
  # with a new home finds its jobs by their mark.
  disk {
    device_name  = "home"
    boot         = false
    auto_delete  = false
    disk_size_gb = 10
    disk_type    = "pd-balanced"
    labels       = local.labels
  }

  network_interface {
    subnetwork = local.subnet_id
  }

  service_account {
    email  = google_service_account.this["manager"].email
    scopes = ["cloud-platform"] # its roles say what it may
  }

  shielded_instance_config {
    enable_secure_boot          = true
    enable_vtpm                 = true
    enable_integrity_monitoring = true
  }

  lifecycle {
    create_before_destroy = true
    # A newer image of the machine comes with the next change, not by itself.
    ignore_changes = [disk[0].source_image]
  }
}

resource "google_compute_health_check" "manager" {
  project             = var.project
  name                = "${var.name}-manager"
  description         = "The manager's ticks come when they are due"
  check_interval_sec  = 30
  timeout_sec         = 10
  healthy_threshold   = 1
  unhealthy_threshold = 6

  http_health_check {
    port         = local.metrics_port
    request_path = "/healthz"
  }

  log_config {
    enable = true
  }

  depends_on = [google_project_service.this]
}

resource "google_compute_instance_group_manager" "manager" {
  project            = var.project
  name               = "${var.name}-manager"
  base_instance_name = "${var.name}-manager"
  zone               = local.zone
  target_size        = 1

  version {
    instance_template = google_compute_instance_template.manager.id
  }

  stateful_disk {
    device_name = "home"
    delete_rule = "ON_PERMANENT_INSTANCE_DELETION"
  }

  auto_healing_policies {
    health_check      = google_compute_health_check.manager.id
    initial_delay_sec = 600
  }

  # The old one ends before the new one starts: one manager at a time has the home.
  update_policy {
    type                  = "PROACTIVE"
    minimal_action        = "REPLACE"
    replacement_method    = "RECREATE"
    max_surge_fixed       = 0
    max_unavailable_fixed = 1
  }

  # An instance that starts without them fails.
  depends_on = [
    google_artifact_registry_repository_iam_member.this,
    google_compute_firewall.health,
    google_compute_router_nat.this,
    google_project_iam_member.this,
    google_secret_manager_secret_iam_member.credentials,
    google_secret_manager_secret_iam_member.workers,
    google_service_account_iam_member.manager,
  ]
}

# What Google itself writes down when it makes an instance anew because its health check failed.
resource "google_monitoring_alert_policy" "manager" {
  project               = var.project
  display_name          = "${var.name}: the manager was down"
  combiner              = "OR"
  notification_channels = var.alarm_actions
  user_labels           = local.labels
  depends_on            = [google_project_service.this]

  conditions {
    display_name = "Its instance was made anew"

    condition_matched_log {
      filter = join(" AND ", [
        "logName=\"projects/${var.project}/logs/cloudaudit.googleapis.com%2Fsystem_event\"",
        "protoPayload.methodName=\"compute.instances.repair.recreateInstance\"",
        "protoPayload.resourceName:\"/instances/${var.name}-manager-\"",
      ])
    }
  }

  alert_strategy {
    auto_close = "3600s"

    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "No worker-manager ran for minutes: nothing launched workers for ${var.server_url}. Its log is `cos_containers`."
  }
}
