# What belongs to all clouds is called alike in terraform/aws and terraform/azure.

variable "server_url" {
  description = "Address of the server of bundles. The subnetwork must lead to it."
  type        = string

  validation {
    condition     = can(regex("^https?://[^/\\s]+(/\\S*)?$", var.server_url))
    error_message = "server_url is an address: write http://… or https://…"
  }
}

variable "name" {
  description = "What everything made here is called, or begins with. One for each pool in a project and region."
  type        = string
  default     = "worker-manager"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,22}[a-z0-9]$", var.name))
    error_message = "name has 3 to 24 lower-case letters, digits and hyphens, and begins with a letter."
  }
}

variable "project" {
  description = "The Google Cloud project where all of it is made."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "project is a project's id: 6 to 30 lower-case letters, digits and hyphens."
  }
}

variable "region" {
  description = "Region of Google Cloud, such as `europe-west4`."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[0-9]+$", var.region))
    error_message = "region is such as europe-west4."
  }
}

variable "zone" {
  description = "Zone of the manager. Null: the region's `-b`."
  type        = string
  default     = null

  validation {
    condition     = var.zone == null || try(startswith(var.zone, "${var.region}-"), false)
    error_message = "zone is one of the region: its name begins with the region's."
  }
}

variable "pool" {
  description = "The pool of workers that the manager keeps (`--pool`)."
  type        = string
  default     = "gcp-batch"

  validation {
    condition     = can(regex("^[A-Za-z0-9]([A-Za-z0-9_-]{0,46}[A-Za-z0-9])?$", var.pool))
    error_message = "pool has up to 48 letters, digits, - and _, and neither begins nor ends with one of the last two."
  }
}

variable "tags" {
  description = "Labels of everything made here that can have some."
  type        = map(string)
  default     = {}

  validation {
    condition     = !anytrue([for key in keys(var.tags) : startswith(key, "worker-manager-")])
    error_message = "Labels that begin with worker-manager- are the manager's own."
  }

  validation {
    condition     = alltrue([for key, value in var.tags : can(regex("^[a-z][a-z0-9_-]{0,62}$", key)) && can(regex("^[a-z0-9_-]{0,63}$", value))])
    error_message = "Labels are lower-case letters, digits, - and _, up to 63 of them; keys begin with a letter."
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
  description = "CPUs of one worker."
  type        = number
  default     = 1

  validation {
    condition     = var.worker_cpus >= 1 && floor(var.worker_cpus) == var.worker_cpus
    error_message = "worker_cpus is a whole number, 1 or more."
  }
}

variable "worker_gpus" {
  description = "GPUs of one worker, of `gpu_type`."
  type        = number
  default     = 0

  validation {
    condition     = var.worker_gpus >= 0 && floor(var.worker_gpus) == var.worker_gpus
    error_message = "worker_gpus is a whole number, 0 or more."
  }

  validation {
    condition     = var.worker_gpus == 0 || var.gpu_type != null || var.machine_type != null
    error_message = "GPUs need a gpu_type, such as nvidia-l4, or a machine_type that has some."
  }
}

variable "worker_memory_mb" {
  description = "Memory of one worker, in MiB."
  type        = number
  default     = 2048

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

variable "machine_type" {
  description = "Type of the machines. Null: GCP Batch chooses what fits one worker or several."
  type        = string
  default     = null

  validation {
    condition     = var.machine_type == null || can(regex("^[a-z][a-z0-9-]+$", var.machine_type))
    error_message = "machine_type is such as e2-standard-4."
  }
}

variable "gpu_type" {
  description = "Type of the GPUs, such as `nvidia-l4`."
  type        = string
  default     = null
}

variable "provisioning" {
  description = "`spot`: machines that may be taken back at any time, at a fraction of the price. `standard`: on demand."
  type        = string
  default     = "spot"

  validation {
    condition     = contains(["spot", "standard"], var.provisioning)
    error_message = "provisioning is spot or standard."
  }
}

# Network

variable "subnet_id" {
  description = "A subnetwork of `region` that is there already: it must lead to the server and to Google's services. Null: a network is made, with Cloud NAT."
  type        = string
  default     = null

  validation {
    condition     = var.subnet_id == null || can(regex("^projects/[^/]+/regions/[^/]+/subnetworks/[^/]+$", var.subnet_id))
    error_message = "subnet_id is projects/PROJECT/regions/REGION/subnetworks/NAME."
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
  description = "Image of the manager, with `worker-manager[gcp]` and `python3` in it. Null: `image_tag` of a repository made here."
  type        = string
  default     = null
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
  description = "Further options of `worker-manager gcp-batch`, such as [\"--worker-idle-seconds\", \"300\"]. No secrets."
  type        = list(string)
  default     = []
}

variable "credentials_secret" {
  description = "A secret of Secret Manager that is there already: a JSON object by `credential_variables`. Null: an empty one is made, and you put its value there."
  type        = string
  default     = null

  validation {
    condition     = var.credentials_secret == null || can(regex("^projects/[^/]+/secrets/[^/]+$", var.credentials_secret))
    error_message = "credentials_secret is projects/PROJECT/secrets/NAME."
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

variable "alarm_actions" {
  description = "Notification channels (projects/…/notificationChannels/…), told when the manager did not run and was made anew."
  type        = list(string)
  default     = []
}
