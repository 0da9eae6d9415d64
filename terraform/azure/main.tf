# What the other files have in common: where we are, what things are called, whose jobs ours are.

data "azurerm_client_config" "current" {}

locals {
  subscription = data.azurerm_client_config.current.subscription_id
  tenant       = data.azurerm_client_config.current.tenant_id
  applicant    = data.azurerm_client_config.current.object_id
  tags         = merge({ application = "worker-manager", name = var.name }, var.tags)

  resource_group_name = var.resource_group_name != null ? var.resource_group_name : azurerm_resource_group.this[0].name

  # The mark of the manager's jobs: a manager whose disk is lost finds its jobs again.
  owner = substr(sha256("${local.subscription}/${var.location}/${var.resource_group_name != null ? var.resource_group_name : ""}/${var.name}"), 0, 16)
  # Names that are nobody else's in Azure have 24 lower-case letters and digits at most.
  unique_name = "${substr(replace(var.name, "-", ""), 0, 16)}${substr(local.owner, 0, 8)}"

  spot = var.spot_max_nodes > 0

  options = concat(
    [
      "--server", var.server_url,
      "--pool", var.pool,
      "--min-workers", tostring(var.min_workers),
      "--max-workers", tostring(var.max_workers),
      "--service-url", "https://${azurerm_batch_account.this.account_endpoint}",
      "--job-id", "${var.name}-workers",
      "--pool-id", azurerm_batch_pool.workers.name,
      "--image", local.worker_image,
      "--cpus", tostring(var.worker_cpus),
      "--gpus", tostring(var.worker_gpus),
      "--memory-mb", tostring(var.worker_memory_mb),
      "--identity", azurerm_user_assigned_identity.this["worker"].id,
      "--secrets-container-url", "${azurerm_storage_account.workers.primary_blob_endpoint}${azurerm_storage_container.workers["secrets"].name}",
      "--log-container-url", "${azurerm_storage_account.workers.primary_blob_endpoint}${azurerm_storage_container.workers["logs"].name}",
      "--metrics-port", tostring(local.metrics_port),
    ],
    local.spot ? ["--worker-preemptible"] : [],
    var.manager_options,
  )
}

resource "azurerm_resource_group" "this" {
  count    = var.resource_group_name == null ? 1 : 0
  name     = var.name
  location = var.location
  tags     = local.tags
}
