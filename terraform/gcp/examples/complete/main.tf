# A research group's pool in a network that is there: machines with GPUs, an alarm by mail.

terraform {
  required_version = ">= 1.9"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = ">= 6.20, < 7.0"
    }
  }
}

variable "project" {
  description = "The Google Cloud project where all of it is made."
  type        = string
}

variable "region" {
  description = "Where all of it is made."
  type        = string
  default     = "europe-west4"
}

variable "server_url" {
  description = "Address of the server of bundles."
  type        = string
}

variable "subnet_id" {
  description = "A subnetwork of the region, with a way out."
  type        = string
}

variable "mail_address" {
  description = "Who is told when the manager was down."
  type        = string
}

provider "google" {
  project = var.project
  region  = var.region
}

resource "google_monitoring_notification_channel" "mail" {
  project      = var.project
  display_name = "folding"
  type         = "email"
  labels       = { email_address = var.mail_address }
}

module "worker_manager" {
  source = "../.."

  name       = "folding"
  project    = var.project
  region     = var.region
  zone       = "${var.region}-a"
  server_url = var.server_url
  pool       = "folding"
  tags       = { cost-centre = "4711" }
  subnet_id  = var.subnet_id

  min_workers      = 1
  max_workers      = 200
  worker_cpus      = 8
  worker_gpus      = 1
  worker_memory_mb = 30000
  machine_type     = "g2-standard-8"
  gpu_type         = "nvidia-l4"
  provisioning     = "standard"

  manager_options      = ["--worker-idle-seconds", "300"]
  credential_variables = ["CODALAB_USERNAME", "CODALAB_PASSWORD"]
  alarm_actions        = [google_monitoring_notification_channel.mail.id]
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
