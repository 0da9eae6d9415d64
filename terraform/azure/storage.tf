# Where workers' credentials are until they start, and what they printed after they ended; where the
# manager's credentials are.

locals {
  own_vault          = var.credentials_secret == null || local.spot
  credentials_secret = var.credentials_secret != null ? var.credentials_secret : "${azurerm_key_vault.this[0].vault_uri}secrets/credentials"
}

resource "azurerm_storage_account" "workers" {
  #checkov:skip=CKV_AZURE_206: credentials live for a day, logs are not worth a second region
  #checkov:skip=CKV_AZURE_33: it has no queues
  #checkov:skip=CKV_AZURE_59: machines come by the service endpoint of their subnet, people by their identity
  #checkov:skip=CKV2_AZURE_1: Azure's own key encrypts it
  #checkov:skip=CKV2_AZURE_33: see CKV_AZURE_59; no key opens it, only roles do
  #checkov:skip=CKV2_AZURE_38: credentials that were removed are to be gone
  name                            = local.unique_name
  resource_group_name             = local.resource_group_name
  location                        = var.location
  account_tier                    = "Standard"
  account_replication_type        = "LRS"
  min_tls_version                 = "TLS1_2"
  https_traffic_only_enabled      = true
  allow_nested_items_to_be_public = false
  # Keys would open everything to whoever has them, and are in the state.
  shared_access_key_enabled        = false
  default_to_oauth_authentication  = true
  local_user_enabled               = false
  cross_tenant_replication_enabled = false
  tags                             = local.tags
}

resource "azurerm_storage_container" "workers" {
  #checkov:skip=CKV2_AZURE_21: reads are those of our own machines, by identity
  for_each              = toset(["secrets", "logs"])
  name                  = "worker-${each.key}"
  storage_account_id    = azurerm_storage_account.workers.id
  container_access_type = "private"
}

# The manager removes credentials itself after a day; not if it is not there any more.
resource "azurerm_storage_management_policy" "workers" {
  storage_account_id = azurerm_storage_account.workers.id

  dynamic "rule" {
    for_each = { secrets = 2, logs = var.log_retention_days }

    content {
      name    = rule.key
      enabled = true

      filters {
        blob_types   = ["blockBlob", "appendBlob"]
        prefix_match = ["${azurerm_storage_container.workers[rule.key].name}/"]
      }

      actions {
        base_blob {
          delete_after_days_since_modification_greater_than = rule.value
        }
      }
    }
  }
}

# The secret in it is put there by hand, so that it is in no state, plan or history of Terraform.
resource "azurerm_key_vault" "this" {
  #checkov:skip=CKV2_AZURE_32: whoever applies this puts a secret there from wherever they are; roles say who may
  count                      = local.own_vault ? 1 : 0
  name                       = local.unique_name
  resource_group_name        = local.resource_group_name
  location                   = var.location
  tenant_id                  = local.tenant
  sku_name                   = "standard"
  rbac_authorization_enabled = true
  purge_protection_enabled   = true
  soft_delete_retention_days = 7
  tags                       = local.tags
}
