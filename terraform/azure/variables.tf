# What belongs to all clouds is called alike in terraform/aws and terraform/gcp.

variable "server_url" {
  description = "Address of the server of bundles. The subnet must lead to it."
  type        = string

  validation {
    condition     = can(regex("^https?://[^/\\s]+(/\\S*)?$", var.server_url))
    error_message = "server_url is an address: write http://… or https://…"
  }
}

variable "name" {
  description = "What everything made here is called, or begins with. One for each pool in a subscription."
  type        = string
  default     = "worker-manager"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{2,22}[a-z0-9]$", var.name))
    error_message = "name has 4 to 24 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "location" {
  description = "Region of Azure where all of it is made, such as `westeurope`."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]+$", var.location))
    error_message = "location is a region's short name: westeurope, eastus, …"
  }
}

variable "resource_group_name" {
  description = "A resource group that is there already. Null: one is made."
  type        = string
  default     = null
}

variable "pool" {
  description = "The pool of workers that the manager keeps (`--pool`)."
  type        = string
  default     = "azure-batch"

  validation {
    condition     = can(regex("^[A-Za-z0-9]([A-Za-z0-9_-]{0,46}[A-Za-z0-9])?$", var.pool))
    error_message = "pool has up to 48 letters, digits, - and _, and neither begins nor ends with one of the last two."
  }
}

variable "tags" {
  description = "Tags of everything made here."
  type        = map(string)
  default     = {}

  validation {
    condition     = !anytrue([for key in keys(var.tags) : startswith(key, "worker-manager-")])
    error_message = "Tags that begin with worker-manager- are the manager's own."
  }
}

# Workers

variable "min_workers" {
  description = "Never fewer workers than this."
  type        = number
  default     = 0

  validation {
    condition     = var.min_workers >= 0 && floor(var.min_workers) == var.min_workers
    error_message = "min_workers is a whole number, 0 or more."
  }
}

variable "max_workers" {
  description = "Never more workers than this."
  type        = number
  default     = 10

  validation {
    condition     = var.max_workers >= var.min_workers && floor(var.max_workers) == var.max_workers
    error_message = "max_workers is a whole number, min_workers or more."
  }
}

variable "worker_cpus" {
  description = "CPUs of one worker, which has a machine to itself: those of `vm_size`."
  type        = number
  default     = 2

  validation {
    condition     = var.worker_cpus >= 1 && floor(var.worker_cpus) == var.worker_cpus
    error_message = "worker_cpus is a whole number, 1 or more."
  }
}

variable "worker_gpus" {
  description = "GPUs of one worker: those of `vm_size`."
  type        = number
  default     = 0

  validation {
    condition     = var.worker_gpus >= 0 && floor(var.worker_gpus) == var.worker_gpus
    error_message = "worker_gpus is a whole number, 0 or more."
  }
}

variable "worker_memory_mb" {
  description = "Memory of one worker, in MiB: somewhat less than `vm_size` has, since the machine needs some."
  type        = number
  default     = 6144

  validation {
    condition     = var.worker_memory_mb >= 512 && floor(var.worker_memory_mb) == var.worker_memory_mb
    error_message = "worker_memory_mb is a whole number, 512 or more."
  }
}

variable "worker_image" {
  description = "Image of the workers. Null: `image_tag` of a repository made here."
  type        = string
  default     = null
}

# Machines

variable "vm_size" {
  description = "Size of the machines, one worker each."
  type        = string
  default     = "Standard_D2ds_v5"

  validation {
    condition     = can(regex("^Standard_[A-Za-z0-9_-]+$", var.vm_size))
    error_message = "vm_size is the name of a size, such as Standard_D2ds_v5."
  }
}

variable "spot_max_nodes" {
  description = "Spot machines at most, which are taken first. 0: none. They need `batch_service_principal_id`, since Azure Batch has them in the subscription's own quota alone."
  type        = number
  default     = 0

  validation {
    condition     = var.spot_max_nodes >= 0 && floor(var.spot_max_nodes) == var.spot_max_nodes
    error_message = "spot_max_nodes is a whole number, 0 or more."
  }

  validation {
    condition     = var.spot_max_nodes == 0 || var.batch_service_principal_id != null
    error_message = "Spot machines need batch_service_principal_id: az ad sp show --id ddbf3205-c6bd-46ae-8127-60eb93363864 --query id -o tsv"
  }
}

variable "on_demand_max_nodes" {
  description = "On-demand machines at most, taken for what is above `spot_max_nodes`."
  type        = number
  default     = 10

  validation {
    condition     = var.on_demand_max_nodes >= 0 && floor(var.on_demand_max_nodes) == var.on_demand_max_nodes
    error_message = "on_demand_max_nodes is a whole number, 0 or more."
  }

  validation {
    condition     = var.spot_max_nodes + var.on_demand_max_nodes > 0
    error_message = "Workers need machines: spot_max_nodes or on_demand_max_nodes must be above 0."
  }
}

variable "batch_service_principal_id" {
  description = "Object id of the service principal *Microsoft Azure Batch* in your tenant, for spot machines. Null: there are none."
  type        = string
  default     = null

  validation {
    condition     = var.batch_service_principal_id == null || can(regex("^[0-9a-f-]{36}$", var.batch_service_principal_id))
    error_message = "batch_service_principal_id is an object id, such as 00000000-0000-0000-0000-000000000000."
  }
}

# Network

variable "subnet_id" {
  description = "A subnet that is there already: it must lead to the server and to Azure's services. Null: a network is made, with a NAT gateway."
  type        = string
  default     = null

  validation {
    condition     = var.subnet_id == null || can(regex("^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\\.Network/virtualNetworks/[^/]+/subnets/[^/]+$", var.subnet_id))
    error_message = "subnet_id is /subscriptions/…/virtualNetworks/NAME/subnets/NAME."
  }
}

variable "network_cidr" {
  description = "Addresses of the network that is made."
  type        = string
  default     = "10.80.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.network_cidr, 4, 15))
    error_message = "network_cidr is a block such as 10.80.0.0/16."
  }
}

# The manager

variable "manager_image" {
  description = "Image of the manager, with `worker-manager[azure]` and `python3` in it. Null: `image_tag` of a repository made here."
  type        = string
  default     = null
}

variable "ssh_public_key" {
  description = "Whom the manager's machine lets in (`azureuser`), where the network does: the one made here lets nobody. Azure wants one."
  type        = string

  validation {
    condition     = can(regex("^(ssh-rsa|ssh-ed25519) [A-Za-z0-9+/]+=*( .*)?$", trimspace(var.ssh_public_key)))
    error_message = "ssh_public_key is what is in ~/.ssh/id_ed25519.pub: ssh-ed25519 AAAA…, or ssh-rsa."
  }
}

variable "image_tag" {
  description = "Tag of the images in the repositories made here. Tags there are immutable: a new image has a new one."
  type        = string
  default     = "1"

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.image_tag))
    error_message = "image_tag has up to 128 letters, digits, _, . and -."
  }
}

variable "manager_options" {
  description = "Further options of `worker-manager azure-batch`, such as [\"--worker-idle-seconds\", \"300\"]. No secrets."
  type        = list(string)
  default     = []
}

variable "credentials_secret" {
  description = "Address of a secret of a Key Vault that is there already: a JSON object by `credential_variables`. The output `manager_identity` must be allowed to read it. Null: a vault is made, and you put the secret `credentials` there."
  type        = string
  default     = null

  validation {
    condition     = var.credentials_secret == null || can(regex("^https://[^/]+/secrets/[^/]+$", var.credentials_secret))
    error_message = "credentials_secret is https://VAULT.vault.azure.net/secrets/NAME."
  }
}

variable "credential_variables" {
  description = "What the secret has: [\"WORKER_MANAGER_TOKEN\"] for a server of `bundles serve`, [\"CODALAB_USERNAME\", \"CODALAB_PASSWORD\"] for CodaLab."
  type        = list(string)
  default     = ["WORKER_MANAGER_TOKEN"]

  validation {
    condition = contains(
      ["WORKER_MANAGER_TOKEN", "CODALAB_PASSWORD,CODALAB_USERNAME"],
      join(",", sort(var.credential_variables))
    )
    error_message = "credential_variables are WORKER_MANAGER_TOKEN, or CODALAB_USERNAME and CODALAB_PASSWORD."
  }
}

variable "log_retention_days" {
  description = "How long Log Analytics keeps what the manager prints and what Azure Batch says."
  type        = number
  default     = 30

  validation {
    condition     = var.log_retention_days >= 30 && var.log_retention_days <= 730
    error_message = "log_retention_days is between 30 and 730, as Log Analytics takes it."
  }
}

variable "alarm_actions" {
  description = "Resource ids of action groups, told when no manager runs, and when one runs again."
  type        = list(string)
  default     = []
}
