# What belongs to all clouds is called alike in terraform/azure and terraform/gcp.

variable "server_url" {
  description = "Address of a server of bundles that is there already; the subnets must lead to it. Null: one is made, with PostgreSQL (RDS) and contents in S3."
  type        = string
  default     = null

  validation {
    condition     = var.server_url == null || can(regex("^https?://[^/\\s]+(/\\S*)?$", var.server_url))
    error_message = "server_url is an address: write http://… or https://…"
  }
}

variable "name" {
  description = "What everything made here is called, or begins with. One for each pool in an account and region."
  type        = string
  default     = "worker-manager"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,29}[a-z0-9]$", var.name))
    error_message = "name has 3 to 31 lower-case letters, digits and hyphens, and begins with a letter."
  }

  validation {
    condition     = !strcontains(var.name, "--")
    error_message = "name has no two hyphens in a row, which ECR and RDS do not take."
  }
}

variable "pool" {
  description = "The pool of workers that the manager keeps (`--pool`)."
  type        = string
  default     = "aws-batch"

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
  description = "CPUs of one worker. Fargate has certain pairs of CPUs and memory only."
  type        = number
  default     = 1

  validation {
    condition     = var.worker_cpus >= 1 && floor(var.worker_cpus) == var.worker_cpus
    error_message = "worker_cpus is a whole number, 1 or more."
  }
}

variable "worker_gpus" {
  description = "GPUs of one worker. Fargate has none; on EC2 `instance_types` must have them."
  type        = number
  default     = 0

  validation {
    condition     = var.worker_gpus >= 0 && floor(var.worker_gpus) == var.worker_gpus
    error_message = "worker_gpus is a whole number, 0 or more."
  }

  validation {
    condition     = var.worker_gpus == 0 || var.platform == "ec2"
    error_message = "Fargate has no GPUs: set platform = \"ec2\" or worker_gpus = 0."
  }

  validation {
    condition     = var.worker_gpus == 0 || !contains(var.instance_types, "optimal")
    error_message = "\"optimal\" has no GPUs: name instance_types that do, such as [\"g5\"]."
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

variable "worker_disk_gb" {
  description = "Disk of one machine of EC2, in GiB, shared by its workers: images, dependencies and runs."
  type        = number
  default     = 100

  validation {
    condition     = var.worker_disk_gb >= 30 && var.worker_disk_gb <= 16384
    error_message = "worker_disk_gb is between 30, which the machine's image needs, and 16384."
  }
}

variable "worker_image" {
  description = "Image of the workers. Null: `image_tag` of a repository made here."
  type        = string
  default     = null
}

variable "worker_role_arn" {
  description = "A role for what workers, and on Fargate bundles, may do in AWS (`--job-role`). Null: nothing."
  type        = string
  default     = null

  validation {
    condition     = var.worker_role_arn == null || can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:role/", var.worker_role_arn))
    error_message = "worker_role_arn is arn:aws:iam::ACCOUNT:role/NAME."
  }
}

# Machines

variable "platform" {
  description = "`ec2`: machines with a Docker engine, bundles in containers of their own. `fargate`: bundles as processes of the worker's container."
  type        = string
  default     = "ec2"

  validation {
    condition     = contains(["ec2", "fargate"], var.platform)
    error_message = "platform is ec2 or fargate."
  }
}

variable "spot_max_cpus" {
  description = "CPUs of spot capacity at most, which is taken first. 0: none."
  type        = number
  default     = 256

  validation {
    condition     = var.spot_max_cpus >= 0 && floor(var.spot_max_cpus) == var.spot_max_cpus
    error_message = "spot_max_cpus is a whole number, 0 or more."
  }
}

variable "on_demand_max_cpus" {
  description = "CPUs of on-demand capacity at most, taken where there is no spot capacity. 0: none."
  type        = number
  default     = 64

  validation {
    condition     = var.on_demand_max_cpus >= 0 && floor(var.on_demand_max_cpus) == var.on_demand_max_cpus
    error_message = "on_demand_max_cpus is a whole number, 0 or more."
  }

  validation {
    condition     = var.job_queue_arn != null || var.spot_max_cpus + var.on_demand_max_cpus > 0
    error_message = "Workers need machines: spot_max_cpus or on_demand_max_cpus must be above 0."
  }
}

variable "instance_types" {
  description = "Types or families of EC2 machines to choose among. `optimal`: whatever fits."
  type        = list(string)
  default     = ["optimal"]

  validation {
    condition     = length(var.instance_types) > 0
    error_message = "instance_types names one at least; [\"optimal\"] is whatever fits."
  }
}

variable "job_queue_arn" {
  description = "A queue of AWS Batch that is there already, of the kind that `platform` says. Null: one is made, with compute environments."
  type        = string
  default     = null

  validation {
    condition     = var.job_queue_arn == null || can(regex("^arn:aws[a-z-]*:batch:[a-z0-9-]+:[0-9]{12}:job-queue/.+$", var.job_queue_arn))
    error_message = "job_queue_arn is arn:aws:batch:REGION:ACCOUNT:job-queue/NAME."
  }
}

variable "batch_service_role_arn" {
  description = "The role by which AWS Batch makes machines. Null: the service-linked one, which AWS makes by itself, and with which machines' settings change without new compute environments."
  type        = string
  default     = null
}

variable "waiting_limit_seconds" {
  description = "A job that waits this long for machines of which there are none is cancelled; the manager decides anew."
  type        = number
  default     = 3600

  validation {
    condition     = var.waiting_limit_seconds >= 600 && var.waiting_limit_seconds <= 86400
    error_message = "waiting_limit_seconds is between 600 and 86400, as AWS Batch takes it."
  }
}

# Network

variable "vpc_id" {
  description = "A VPC that is there already. Null: one is made, with private subnets and a NAT gateway."
  type        = string
  default     = null
}

variable "subnet_ids" {
  description = "Subnets of `vpc_id`, one a zone: they must lead to the server, to ECR, CloudWatch, SSM and Secrets Manager."
  type        = list(string)
  default     = []

  validation {
    condition     = (var.vpc_id == null) == (length(var.subnet_ids) == 0)
    error_message = "vpc_id and subnet_ids are given together, or neither is."
  }

  validation {
    condition     = var.server_url != null || length(var.subnet_ids) != 1
    error_message = "A server that is made here needs subnets in two zones at least, for its balancer and its database."
  }
}

variable "assign_public_ip" {
  description = "Give manager and server public addresses: where `subnet_ids` are public and have no NAT. Machines of EC2 have what the subnet gives them; workers on Fargate have none."
  type        = bool
  default     = false

  validation {
    condition     = !var.assign_public_ip || var.platform == "ec2"
    error_message = "Workers on Fargate have no public addresses: give subnet_ids with a NAT gateway, or platform = \"ec2\"."
  }
}

variable "network_cidr" {
  description = "Addresses of the VPC that is made."
  type        = string
  default     = "10.80.0.0/16"

  validation {
    condition     = can(cidrsubnet(var.network_cidr, 4, 15))
    error_message = "network_cidr is a block such as 10.80.0.0/16."
  }
}

# The server, where `server_url` is null

variable "server_domain" {
  description = "The server's name, such as bundles.example.org, for which `server_certificate_arn` is, and which you let lead to `server_balancer` (a CNAME record). Null: the balancer's own name, by plain HTTP inside the VPC."
  type        = string
  default     = null

  validation {
    condition     = var.server_domain == null || can(regex("^([a-z0-9]([a-z0-9-]*[a-z0-9])?\\.)+[a-z][a-z0-9-]*[a-z0-9]$", var.server_domain))
    error_message = "server_domain is a name such as bundles.example.org, without https://."
  }

  validation {
    condition     = (var.server_domain == null) == (var.server_certificate_arn == null)
    error_message = "server_domain and server_certificate_arn are given together, or neither is."
  }
}

variable "server_certificate_arn" {
  description = "A certificate of ACM for `server_domain`. Null: plain HTTP inside the VPC."
  type        = string
  default     = null

  validation {
    condition     = var.server_certificate_arn == null || can(regex("^arn:aws[a-z-]*:acm:[a-z0-9-]+:[0-9]{12}:certificate/.+$", var.server_certificate_arn))
    error_message = "server_certificate_arn is arn:aws:acm:REGION:ACCOUNT:certificate/ID."
  }
}

variable "server_public" {
  description = "The server's load balancer has addresses of the internet, for `server_client_cidrs`. Only with a certificate."
  type        = bool
  default     = false

  validation {
    condition     = !var.server_public || var.server_domain != null
    error_message = "A public server needs HTTPS: give server_domain and server_certificate_arn, or leave server_public false."
  }
}

variable "server_public_subnet_ids" {
  description = "Public subnets of `vpc_id` in two zones, where `server_public` is true and the VPC is given."
  type        = list(string)
  default     = []

  validation {
    condition     = !var.server_public || length(var.subnet_ids) == 0 || length(var.server_public_subnet_ids) > 1
    error_message = "A public server in a VPC of yours needs server_public_subnet_ids, in two zones at least."
  }
}

variable "server_client_cidrs" {
  description = "Addresses from which users, and workers of other pools and queues, may ask the server, such as [\"10.80.0.0/16\"]. Manager and workers made here may anyway."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.server_client_cidrs : can(cidrhost(cidr, 0))])
    error_message = "server_client_cidrs are blocks such as 10.80.0.0/16."
  }
}

variable "server_deletion_protection" {
  description = "Database and contents of the server cannot be destroyed. False, and applied: `terraform destroy` takes them, with all backups."
  type        = bool
  default     = true
}

variable "database_instance_class" {
  description = "Machine of the server's database."
  type        = string
  default     = "db.t4g.small"

  validation {
    condition     = startswith(var.database_instance_class, "db.")
    error_message = "database_instance_class is one of RDS, such as db.t4g.small."
  }
}

variable "database_multi_zone" {
  description = "The server's database has a stand-by in another zone, which costs as much again."
  type        = bool
  default     = false
}

# The manager

variable "manager_image" {
  description = "Image of the manager, with `worker-manager[aws]`, `sh` and `python3` in it. Null: `image_tag` of a repository made here."
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
  description = "Further options of `worker-manager aws-batch`, such as [\"--worker-idle-seconds\", \"300\"]. No secrets."
  type        = list(string)
  default     = []
}

variable "credentials_secret" {
  description = "A secret of Secrets Manager that is there already: a JSON object by `credential_variables`. Null: an empty one is made, and you put its value there."
  type        = string
  default     = null

  validation {
    condition     = var.credentials_secret == null || can(regex("^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+$", var.credentials_secret))
    error_message = "credentials_secret is arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME."
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

  validation {
    condition     = var.server_url != null || contains(var.credential_variables, "WORKER_MANAGER_TOKEN")
    error_message = "A server that is made here has one administrator, whose token is WORKER_MANAGER_TOKEN."
  }
}

variable "log_retention_days" {
  description = "How long CloudWatch keeps what manager and workers print."
  type        = number
  default     = 30

  validation {
    condition     = contains([1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653], var.log_retention_days)
    error_message = "log_retention_days is one that CloudWatch has: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, …"
  }
}

variable "alarm_actions" {
  description = "ARNs, such as of SNS topics, told when no manager runs, and when one runs again."
  type        = list(string)
  default     = []
}
