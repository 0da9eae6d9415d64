# Who may do what. Every identity has what it needs in the one place where it needs it.

resource "azurerm_user_assigned_identity" "this" {
  for_each            = toset(["manager", "worker"])
  name                = "${var.name}-${each.key}"
  resource_group_name = local.resource_group_name
  location            = var.location
  tags                = local.tags
}

locals {
  permissions = merge(
    {
      # Submit, list and end: of every job of this account, which is this manager's alone.
      "manager submits jobs" = {
        who = "manager", role = "Azure Batch Job Submitter", scope = azurerm_batch_account.this.id
      }
      # The submitter's role reads jobs and pools, and nothing of the account's own, such as counts.
      "manager looks at its account" = {
        who = "manager", role = "Azure Batch Account Reader", scope = azurerm_batch_account.this.id
      }
      "manager hands out credentials" = {
        who = "manager", role = "Storage Blob Data Contributor", scope = azurerm_storage_container.workers["secrets"].id
      }
    },
    local.own_vault ? {
      "manager reads its credentials" = {
        who = "manager", role = "Key Vault Secrets User", scope = azurerm_key_vault.this[0].id
      }
    } : {},
    var.manager_image == null ? {
      "manager pulls its image" = {
        who = "manager", role = "AcrPull", scope = azurerm_container_registry.this[0].id
      }
    } : {},
  )

  worker_permissions = merge(
    {
      "worker reads its credentials" = {
        role = "Storage Blob Data Reader", scope = azurerm_storage_container.workers["secrets"].id
      }
      "worker writes its log" = {
        role = "Storage Blob Data Contributor", scope = azurerm_storage_container.workers["logs"].id
      }
    },
    var.worker_image == null ? {
      "worker pulls its image" = { role = "AcrPull", scope = azurerm_container_registry.this[0].id }
    } : {},
  )
}

resource "azurerm_role_assignment" "manager" {
  for_each             = local.permissions
  principal_id         = azurerm_user_assigned_identity.this["manager"].principal_id
  role_definition_name = each.value.role
  scope                = each.value.scope
  description          = each.key
  principal_type       = "ServicePrincipal"
}

resource "azurerm_role_assignment" "worker" {
  for_each             = local.worker_permissions
  principal_id         = azurerm_user_assigned_identity.this["worker"].principal_id
  role_definition_name = each.value.role
  scope                = each.value.scope
  description          = each.key
  principal_type       = "ServicePrincipal"
}

# Whoever applies this puts the manager's credentials into the vault.
resource "azurerm_role_assignment" "credentials" {
  count                = var.credentials_secret == null ? 1 : 0
  principal_id         = local.applicant
  role_definition_name = "Key Vault Secrets Officer"
  scope                = azurerm_key_vault.this[0].id
  description          = "puts the manager's credentials there"
}

# In a subscription's own quota Azure Batch keeps what it needs for itself in a vault.
resource "azurerm_role_assignment" "batch_service" {
  count                = local.spot ? 1 : 0
  principal_id         = var.batch_service_principal_id
  role_definition_name = "Key Vault Secrets Officer"
  scope                = azurerm_key_vault.this[0].id
  description          = "Azure Batch keeps its own secrets there"
  principal_type       = "ServicePrincipal"
}
