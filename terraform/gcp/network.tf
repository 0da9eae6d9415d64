# A network of our own where none is given. Manager and workers call out, and only Google's health
# check calls the manager.

locals {
  own_network = var.subnet_id == null
  subnet_id   = local.own_network ? google_compute_subnetwork.this[0].id : var.subnet_id
  network     = local.own_network ? google_compute_network.this[0].id : replace(data.google_compute_subnetwork.given[0].network, "https://www.googleapis.com/compute/v1/", "")
  manager_tag = "${var.name}-manager"
  # https://cloud.google.com/load-balancing/docs/health-check-concepts: where it comes from.
  health_check_ranges = ["35.191.0.0/16", "130.211.0.0/22"]
}

data "google_compute_subnetwork" "given" {
  count     = local.own_network ? 0 : 1
  self_link = var.subnet_id
}

resource "google_compute_network" "this" {
  #checkov:skip=CKV2_GCP_18: it has no default rules: nobody can call in but by the rule below
  count                   = local.own_network ? 1 : 0
  project                 = var.project
  name                    = var.name
  auto_create_subnetworks = false
  depends_on              = [google_project_service.this]
}

resource "google_compute_subnetwork" "this" {
  #checkov:skip=CKV_GCP_26: nobody can call in; flow logs of what bundles fetch cost more than the manager
  count                    = local.own_network ? 1 : 0
  project                  = var.project
  name                     = var.name
  region                   = var.region
  network                  = google_compute_network.this[0].id
  ip_cidr_range            = cidrsubnet(var.network_cidr, 2, 0)
  private_ip_google_access = true # images and credentials come from there, past Cloud NAT
}

resource "google_compute_router" "this" {
  count   = local.own_network ? 1 : 0
  project = var.project
  name    = var.name
  region  = var.region
  network = google_compute_network.this[0].id
}

resource "google_compute_router_nat" "this" {
  count                              = local.own_network ? 1 : 0
  project                            = var.project
  name                               = var.name
  region                             = var.region
  router                             = google_compute_router.this[0].name
  nat_ip_allocate_option             = "AUTO_ONLY"
  source_subnetwork_ip_ranges_to_nat = "ALL_SUBNETWORKS_ALL_IP_RANGES"

  log_config {
    enable = true
    filter = "ERRORS_ONLY"
  }
}

resource "google_compute_firewall" "health" {
  project       = local.own_network ? var.project : split("/", var.subnet_id)[1] # it may be shared
  name          = "${var.name}-health"
  description   = "Google's health check, to the manager's /healthz"
  network       = local.network
  direction     = "INGRESS"
  source_ranges = local.health_check_ranges
  target_tags   = [local.manager_tag]

  allow {
    protocol = "tcp"
    ports    = [tostring(local.metrics_port)]
  }
}
