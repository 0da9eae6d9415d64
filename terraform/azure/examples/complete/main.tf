# A research group's pool in a network that is there: spot machines, then on-demand ones, an alarm by
# mail.

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

variable "resource_group_name" {
  description = "The group's resource group."
  type        = string
}

variable "server_url" {
  description = "Address of the server of bundles."
  type        = string
}

variable "subnet_id" {
  description = "A subnet with a way out."
  type        = string
}

variable "ssh_public_key" {
  description = "Whom the manager's machine lets in, from inside its network."
  type        = string
}

variable "batch_service_principal_id" {
  description = "az ad sp show --id ddbf3205-c6bd-46ae-8127-60eb93363864 --query id -o tsv"
  type        = string
}

variable "mail_address" {
  description = "Who is told when the manager is down."
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

resource "azurerm_monitor_action_group" "mail" {
  name                = "folding"
  resource_group_name = var.resource_group_name
  short_name          = "folding"

  email_receiver {
    name          = "group"
    email_address = var.mail_address
  }
}

module "worker_manager" {
  source = "../.."

  name                = "folding"
  location            = var.location
  resource_group_name = var.resource_group_name
  server_url          = var.server_url
  pool                = "folding"
  tags                = { cost-centre = "4711" }
  subnet_id           = var.subnet_id
  ssh_public_key      = var.ssh_public_key

  min_workers                = 1
  max_workers                = 200
  vm_size                    = "Standard_D8ds_v5"
  worker_cpus                = 8
  worker_memory_mb           = 30000
  spot_max_nodes             = 180
  on_demand_max_nodes        = 20
  batch_service_principal_id = var.batch_service_principal_id

  manager_options      = ["--worker-idle-seconds", "300"]
  credential_variables = ["CODALAB_USERNAME", "CODALAB_PASSWORD"]
  log_retention_days   = 90
  alarm_actions        = [azurerm_monitor_action_group.mail.id]
}

output "worker_manager" {
  description = "What to push, to fill in and to look at: see the module's README."
  value       = module.worker_manager
}
