# Where workers run: a Batch account, and a pool of machines with a container engine, one worker each.

locals {
  # `taskcompletion` keeps machines whose worker is busy. The formula is evaluated every five minutes,
  # which is as often as Azure Batch does it.
  formula = <<-FORMULA
    wanted = max(0, $PendingTasks.GetSample(1));
    $TargetLowPriorityNodes = min(${var.spot_max_nodes}, wanted);
    $TargetDedicatedNodes = min(${var.on_demand_max_nodes}, max(0, wanted - ${var.spot_max_nodes}));
    $NodeDeallocationOption = taskcompletion;
  FORMULA
}

resource "azurerm_batch_account" "this" {
  name                = local.unique_name
  resource_group_name = local.resource_group_name
  location            = var.location
  # Keys would open everything to whoever has them, and be in the state.
  allowed_authentication_modes = ["AAD"]
  # There are spot machines in the subscription's own quota alone, where on-demand ones then are, too.
  pool_allocation_mode = local.spot ? "UserSubscription" : "BatchService"
  tags                 = local.tags

  dynamic "key_vault_reference" {
    for_each = local.spot ? azurerm_key_vault.this : []

    content {
      id  = key_vault_reference.value.id
      url = key_vault_reference.value.vault_uri
    }
  }

  depends_on = [azurerm_role_assignment.batch_service]
}

resource "azurerm_batch_pool" "workers" {
  name                           = "${var.name}-workers"
  resource_group_name            = local.resource_group_name
  account_name                   = azurerm_batch_account.this.name
  display_name                   = "Workers of ${var.server_url}"
  vm_size                        = var.vm_size
  node_agent_sku_id              = "batch.node.ubuntu 22.04"
  max_tasks_per_node             = 1 # what a worker leaves or breaks is no other one's
  target_node_communication_mode = "Simplified"
  inter_node_communication       = "Disabled" # the provider's default allows a hundred machines
  metadata                       = local.tags

  # Has a container engine, and drivers for GPUs.
  storage_image_reference {
    publisher = "microsoft-dsvm"
    offer     = "ubuntu-hpc"
    sku       = "2204"
    version   = "latest"
  }

  auto_scale {
    evaluation_interval = "PT5M"
    formula             = local.formula
  }

  container_configuration {
    type = "DockerCompatible"

    # By identity: a password would be in the state, and on every machine.
    dynamic "container_registries" {
      for_each = local.registries["worker"]

      content {
        registry_server           = container_registries.value
        user_assigned_identity_id = azurerm_user_assigned_identity.this["worker"].id
      }
    }
  }

  # A machine whose engine does not answer is taken out of the pool, instead of failing worker after
  # worker.
  start_task {
    command_line       = "/bin/sh -c 'timeout 60 docker info > /dev/null'"
    task_retry_maximum = 2
    wait_for_success   = true

    user_identity {
      auto_user {
        elevation_level = "Admin"
        scope           = "Pool"
      }
    }
  }

  network_configuration {
    subnet_id                        = local.subnet_id
    public_address_provisioning_type = "NoPublicIPAddresses"
    accelerated_networking_enabled   = false
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.this["worker"].id]
  }

  depends_on = [
    azurerm_role_assignment.worker,
    azurerm_subnet_nat_gateway_association.this,
    azurerm_subnet_network_security_group_association.this,
  ]
}

resource "azurerm_monitor_diagnostic_setting" "batch" {
  name                       = "to-log-analytics"
  target_resource_id         = azurerm_batch_account.this.id
  log_analytics_workspace_id = azurerm_log_analytics_workspace.this.id

  enabled_log {
    category = "ServiceLog"
  }
}
