# Everything from nothing, for a server that is there: workers on on-demand machines, and a manager.

terraform {
  required_version = ">= 1.9"

  required_providers {
    azurerm = {
      source  = "hashicorp/azurerm"
      version = ">= 4.42, < 5.0"
    }
  }
}

variable "subscription_id" {
  description = "The subscription where all of it is made."
  type        = string
}

variable "location" {
  description = "Where all of it is made."
  type        = string
  default     = "westeurope"
}

variable "server_url" {
  description = "Address of the server of bundles."
  type        = string
}

variable "ssh_public_key" {
  description = "Whom the manager's machine lets in, from inside its network."
  type        = string
}

provider "azurerm" {
  subscription_id     = var.subscription_id
  storage_use_azuread = true # the storage account has no keys

  features {
    # Else it reads the account's queues, of which there are none, and which not even an owner may.
    storage {
      data_plane_available = false
    }
  }
}

module "worker_manager" {
  source         = "../.."
  location       = var.location
  server_url     = var.server_url
  ssh_public_key = var.ssh_public_key
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
