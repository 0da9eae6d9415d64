# What the module makes of its variables, with a stand-in for Azure.

mock_provider "azurerm" {
  mock_data "azurerm_client_config" {
    defaults = {
      subscription_id = "00000000-0000-0000-0000-000000000001"
      tenant_id       = "00000000-0000-0000-0000-000000000002"
      object_id       = "00000000-0000-0000-0000-000000000003"
    }
  }
  mock_resource "azurerm_batch_account" {
    defaults = { account_endpoint = "mock.westeurope.batch.azure.com" }
  }
  mock_resource "azurerm_storage_account" {
    defaults = { primary_blob_endpoint = "https://mock.blob.core.windows.net/" }
  }
  mock_resource "azurerm_container_registry" {
    defaults = { login_server = "mock.azurecr.io" }
  }
  mock_resource "azurerm_key_vault" {
    defaults = { vault_uri = "https://mock.vault.azure.net/" }
  }
}

variables {
  location       = "westeurope"
  server_url     = "https://bundles.example.org"
  ssh_public_key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFakeFakeFakeFakeFakeFakeFakeFakeFakeFakeFake somebody"
}

run "everything_from_nothing" {
  assert {
    condition     = length(azurerm_resource_group.this) == 1 && length(azurerm_virtual_network.this) == 1
    error_message = "A resource group and a network are made where none is given."
  }
  assert {
    condition     = azurerm_batch_account.this.pool_allocation_mode == "BatchService" && strcontains(azurerm_batch_pool.workers.auto_scale[0].formula, "$TargetDedicatedNodes = min(10, max(0, wanted - 0))")
    error_message = "Machines are on-demand ones, as many as there is work."
  }
  assert {
    condition     = azurerm_batch_pool.workers.inter_node_communication == "Disabled"
    error_message = "Machines that may speak to each other are a hundred at most."
  }
  assert {
    condition     = azurerm_batch_account.this.allowed_authentication_modes == toset(["AAD"]) && !azurerm_storage_account.workers.shared_access_key_enabled && !azurerm_container_registry.this[0].admin_enabled
    error_message = "No key opens anything: keys are in the state."
  }
  assert {
    condition     = strcontains(join(" ", output.manager_options), "--secrets-container-url https://mock.blob.core.windows.net/worker-secrets") && strcontains(join(" ", output.manager_options), "--service-url https://mock.westeurope.batch.azure.com ")
    error_message = "The manager is told where all of it is."
  }
  assert {
    condition     = !contains(output.manager_options, "--worker-preemptible")
    error_message = "On-demand machines are not taken back."
  }
  assert {
    condition     = output.credentials_secret == "https://mock.vault.azure.net/secrets/credentials"
    error_message = "The secret has a place."
  }
  assert {
    condition     = toset([for one in azurerm_role_assignment.manager : one.role_definition_name]) == toset(["AcrPull", "Azure Batch Account Reader", "Azure Batch Job Submitter", "Key Vault Secrets User", "Storage Blob Data Contributor"])
    error_message = "The manager may do what it needs, and no more."
  }
  assert {
    condition     = length(azurerm_batch_account.this.name) <= 24 && can(regex("^[a-z][a-z0-9]+$", azurerm_batch_account.this.name))
    error_message = "A name that all of Azure shares has 24 letters and digits."
  }
}

run "a_new_owner_for_each_name" {
  command = plan

  variables {
    name = "another"
  }

  assert {
    condition     = output.owner != run.everything_from_nothing.owner && can(regex("^[0-9a-f]{16}$", output.owner))
    error_message = "The mark is 16 hex digits, another for each name."
  }
}

run "spot_machines_first" {
  variables {
    name                       = "spot"
    spot_max_nodes             = 50
    on_demand_max_nodes        = 5
    batch_service_principal_id = "00000000-0000-0000-0000-000000000004"
  }

  assert {
    condition     = azurerm_batch_account.this.pool_allocation_mode == "UserSubscription" && length(azurerm_batch_account.this.key_vault_reference) == 1
    error_message = "Spot machines are in the subscription's own quota, for which Batch wants a vault."
  }
  assert {
    condition     = strcontains(azurerm_batch_pool.workers.auto_scale[0].formula, "$TargetLowPriorityNodes = min(50, wanted)") && strcontains(azurerm_batch_pool.workers.auto_scale[0].formula, "min(5, max(0, wanted - 50))")
    error_message = "On-demand machines are for what is above the spot ones."
  }
  assert {
    condition     = contains(output.manager_options, "--worker-preemptible")
    error_message = "Workers are told that their machine may go."
  }
}

run "what_is_there_is_used" {
  variables {
    name                = "existing"
    resource_group_name = "theirs"
    subnet_id           = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/v/subnets/s"
    worker_image        = "theirs.azurecr.io/worker:7"
    manager_image       = "ghcr.io/example/worker-manager:1"
    credentials_secret  = "https://theirs.vault.azure.net/secrets/manager"
  }

  assert {
    condition     = length(azurerm_resource_group.this) + length(azurerm_virtual_network.this) + length(azurerm_container_registry.this) + length(azurerm_key_vault.this) == 0
    error_message = "No group, network, registry or vault is made."
  }
  assert {
    condition     = output.subnet_id == var.subnet_id && output.credentials_secret == var.credentials_secret
    error_message = "The given ones are used."
  }
  assert {
    condition     = [for one in azurerm_batch_pool.workers.container_configuration[0].container_registries : one.registry_server] == ["theirs.azurecr.io"]
    error_message = "The registry of a given image is known by its name."
  }
  assert {
    condition     = !strcontains(base64decode(azurerm_linux_virtual_machine_scale_set.manager.custom_data), "docker login")
    error_message = "Nobody signs in to a registry that is not Azure's."
  }
}

run "values_that_make_no_sense_are_refused" {
  command = plan

  variables {
    location            = "West Europe"
    server_url          = "bundles.example.org"
    name                = "Worker Manager"
    max_workers         = -1
    on_demand_max_nodes = 0
    worker_memory_mb    = 100
    vm_size             = "big"
    subnet_id           = "subnet-1"
    log_retention_days  = 7
    ssh_public_key      = "-----BEGIN OPENSSH PRIVATE KEY-----"
    tags                = { worker-manager-owner = "me" }
  }

  expect_failures = [
    var.location, var.server_url, var.name, var.max_workers, var.on_demand_max_nodes, var.worker_memory_mb,
    var.vm_size, var.subnet_id, var.log_retention_days, var.ssh_public_key, var.tags,
  ]
}

run "spot_machines_need_the_principal_of_batch" {
  command = plan

  variables {
    spot_max_nodes = 1
  }

  expect_failures = [var.spot_max_nodes]
}
