output "manager_options" {
  description = "All options of `worker-manager azure-batch`, as the service runs it."
  value       = local.options
}

output "owner" {
  description = "The mark of the manager's jobs: what the file `owner` of its home has."
  value       = local.owner
}

output "batch_account" {
  description = "The Batch account, and the pool that workers run on."
  value       = { account = azurerm_batch_account.this.name, pool = azurerm_batch_pool.workers.name }
}

output "manager_identity" {
  description = "Who the manager is: a managed identity, by what one refers to it."
  value = {
    id           = azurerm_user_assigned_identity.this["manager"].id
    client_id    = azurerm_user_assigned_identity.this["manager"].client_id
    principal_id = azurerm_user_assigned_identity.this["manager"].principal_id
  }
}

output "worker_identity" {
  description = "Who workers' machines are: a managed identity, by what one refers to it."
  value = {
    id           = azurerm_user_assigned_identity.this["worker"].id
    client_id    = azurerm_user_assigned_identity.this["worker"].client_id
    principal_id = azurerm_user_assigned_identity.this["worker"].principal_id
  }
}

output "manager_image" {
  description = "The image of the manager: push it where it is in the registry made here."
  value       = local.manager_image
}

output "worker_image" {
  description = "The image of workers: push it where it is in the registry made here."
  value       = local.worker_image
}

output "credentials_secret" {
  description = "The secret with the manager's credentials: put its value there where the vault was made here."
  value       = local.credentials_secret
}

output "manager_log" {
  description = "Where what the manager prints is: a workspace of Log Analytics, table Syslog."
  value       = azurerm_log_analytics_workspace.this.name
}

output "worker_log" {
  description = "Where what workers printed is after they ended: a container of blobs."
  value       = azurerm_storage_container.workers["logs"].id
}

output "manager_service" {
  description = "The manager as a service: resource group and scale set."
  value       = { resource_group = local.resource_group_name, scale_set = azurerm_linux_virtual_machine_scale_set.manager.name }
}

output "subnet_id" {
  description = "The subnet of manager and workers."
  value       = local.subnet_id
}
