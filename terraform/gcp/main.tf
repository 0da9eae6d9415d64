# What the other files have in common: where we are, what things are called, whose jobs ours are.

locals {
  labels = merge({ application = "worker-manager", name = var.name }, var.tags)
  zone   = var.zone != null ? var.zone : "${var.region}-b"

  # The mark of the manager's jobs: a manager whose disk is lost finds its jobs again.
  owner = substr(sha256("${var.project}/${var.region}/${var.name}"), 0, 16)

  options = concat(
    [
      "--server", var.server_url,
      "--pool", var.pool,
      "--min-workers", tostring(var.min_workers),
      "--max-workers", tostring(var.max_workers),
      "--project", var.project,
      "--region", var.region,
      "--image", local.worker_image,
      "--cpus", tostring(var.worker_cpus),
      "--gpus", tostring(var.worker_gpus),
      "--memory-mb", tostring(var.worker_memory_mb),
      "--provisioning", var.provisioning,
      "--network", local.network,
      "--subnetwork", local.subnet_id,
      "--no-external-ip",
      "--service-account", google_service_account.this["worker"].email,
      "--secret", google_secret_manager_secret.workers.id,
      # Google's health check comes from outside of the machine: see the firewall.
      "--metrics-host", "0.0.0.0",
      "--metrics-port", tostring(local.metrics_port),
    ],
    var.machine_type != null ? ["--machine-type", var.machine_type] : [],
    var.gpu_type != null ? ["--gpu-type", var.gpu_type] : [],
    var.manager_options,
  )
}

# They stay when all else goes: others in the project may use them.
resource "google_project_service" "this" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "batch.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "secretmanager.googleapis.com",
  ])
  project            = var.project
  service            = each.key
  disable_on_destroy = false
}
