# Everything from nothing, for a server that is there: workers on spot machines, and a manager.

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

provider "google" {
  project = var.project
  region  = var.region
}

module "worker_manager" {
  source     = "../.."
  project    = var.project
  region     = var.region
  server_url = var.server_url
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
