# Everything from nothing: a server of bundles, unless there is one; workers on spot machines, and a
# manager.

terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.80"
    }
  }
}

variable "region" {
  description = "Where all of it is made."
  type        = string
  default     = "us-east-1"
}

variable "server_url" {
  description = "Address of a server of bundles that is there already. Null: one is made, inside the VPC."
  type        = string
  default     = null
}

variable "server_deletion_protection" {
  description = "Database and contents of a server that is made cannot be destroyed."
  type        = bool
  default     = true
}

provider "aws" {
  region = var.region
}

module "worker_manager" {
  source                     = "../.."
  server_url                 = var.server_url
  server_deletion_protection = var.server_deletion_protection
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
