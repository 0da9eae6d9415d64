# The manager: one instance of a scale set, its home on a disk of its own, its log in Log Analytics,
# and an alarm for when it is down.
#
# Not a container app: those have no disk but shares of files. SMB has no locks that a ledger can rely
# on, and NFS shares are reported not to mount there (microsoft/azure-container-apps).

locals {
  metrics_port = 9465
  # A name of Docker's for whoever shows a token instead of a password.
  token_user = "00000000-0000-0000-0000-000000000000"
}

module "machine" {
  source = "../machine"

  name                = var.name
  image               = local.manager_image
  options             = concat(["azure-batch"], local.options)
  owner               = local.owner
  home_device         = "/dev/disk/azure/scsi1/lun0"
  credentials_program = file("${path.module}/files/credentials.py")
  metrics_port        = local.metrics_port
  packages            = ["docker.io"]
  environment = {
    AZURE_CLIENT_ID    = azurerm_user_assigned_identity.this["manager"].client_id
    CREDENTIALS_SECRET = local.credentials_secret
  }
  login_commands = [
    for registry in local.registries["manager"] :
    templatefile("${path.module}/files/login.sh.tftpl", {
      client_id = azurerm_user_assigned_identity.this["manager"].client_id
      registry  = registry
      user      = local.token_user
    })
  ]
}

resource "azurerm_linux_virtual_machine_scale_set" "manager" {
  #checkov:skip=CKV_AZURE_97: a subscription must have been registered for it; the disk has no secret, and Azure's own key encrypts it
  name                 = "${var.name}-manager"
  resource_group_name  = local.resource_group_name
  location             = var.location
  sku                  = "Standard_B2als_v2"
  instances            = 1
  overprovision        = false # one manager at a time has the pool
  computer_name_prefix = "manager"
  custom_data          = base64encode(module.machine.cloud_config)
  tags                 = local.tags

  admin_username                  = "azureuser"
  disable_password_authentication = true

  admin_ssh_key {
    username   = "azureuser"
    public_key = trimspace(var.ssh_public_key)
  }

  source_image_reference {
    publisher = "Canonical"
    offer     = "ubuntu-24_04-lts"
    sku       = "server"
    version   = "latest"
  }

  os_disk {
    caching              = "ReadWrite"
    storage_account_type = "StandardSSD_LRS"
  }

  # The home: ledger, journal, intents of launches. It stays when the machine is made anew in its
  # place. A manager with a new home finds its jobs by their mark.
  data_disk {
    lun                  = 0
    caching              = "None"
    create_option        = "Empty"
    disk_size_gb         = 16
    storage_account_type = "StandardSSD_LRS"
  }

  network_interface {
    name    = "primary"
    primary = true

    ip_configuration {
      name      = "primary"
      primary   = true
      subnet_id = local.subnet_id
    }
  }

  identity {
    type         = "UserAssigned"
    identity_ids = [azurerm_user_assigned_identity.this["manager"].id]
  }

  extension {
    name                       = "health"
    publisher                  = "Microsoft.ManagedServices"
    type                       = "ApplicationHealthLinux"
    type_handler_version       = "1.0"
    auto_upgrade_minor_version = true
    settings = jsonencode({
      protocol    = "http"
      port        = local.metrics_port
      requestPath = "/healthz"
    })
  }

  extension {
    name                       = "log"
    publisher                  = "Microsoft.Azure.Monitor"
    type                       = "AzureMonitorLinuxAgent"
    type_handler_version       = "1.33"
    auto_upgrade_minor_version = true
    settings = jsonencode({
      authentication = {
        managedIdentity = {
          identifier-name  = "mi_res_id"
          identifier-value = azurerm_user_assigned_identity.this["manager"].id
        }
      }
    })
  }

  # systemd starts the manager anew; this starts the machine anew, and keeps its disks.
  automatic_instance_repair {
    enabled      = true
    action       = "Restart"
    grace_period = "PT30M"
  }

  boot_diagnostics {}

  depends_on = [
    azurerm_role_assignment.manager,
    azurerm_subnet_nat_gateway_association.this,
    azurerm_subnet_network_security_group_association.this,
  ]
}

resource "azurerm_log_analytics_workspace" "this" {
  name                = var.name
  resource_group_name = local.resource_group_name
  location            = var.location
  sku                 = "PerGB2018"
  retention_in_days   = var.log_retention_days
  tags                = local.tags
}

resource "azurerm_monitor_data_collection_rule" "manager" {
  name                = "${var.name}-manager"
  resource_group_name = local.resource_group_name
  location            = var.location
  kind                = "Linux"
  description         = "What the manager prints, and once a minute that it is alive"
  tags                = local.tags

  data_sources {
    syslog {
      name           = "syslog"
      facility_names = ["daemon"]
      log_levels     = ["Info", "Notice", "Warning", "Error", "Critical", "Alert", "Emergency"]
      streams        = ["Microsoft-Syslog"]
    }
  }

  destinations {
    log_analytics {
      name                  = "workspace"
      workspace_resource_id = azurerm_log_analytics_workspace.this.id
    }
  }

  data_flow {
    streams       = ["Microsoft-Syslog"]
    destinations  = ["workspace"]
    transform_kql = "source | where ProcessName startswith 'worker-manager'"
  }
}

resource "azurerm_monitor_data_collection_rule_association" "manager" {
  name                    = "${var.name}-manager"
  target_resource_id      = azurerm_linux_virtual_machine_scale_set.manager.id
  data_collection_rule_id = azurerm_monitor_data_collection_rule.manager.id
}

resource "azurerm_monitor_scheduled_query_rules_alert_v2" "manager" {
  name                 = "${var.name}-manager-is-down"
  resource_group_name  = local.resource_group_name
  location             = var.location
  description          = "For ten minutes no worker-manager ran: nothing launches workers for ${var.server_url}. Its log is in ${azurerm_log_analytics_workspace.this.name}, table Syslog."
  scopes               = [azurerm_log_analytics_workspace.this.id]
  severity             = 1
  evaluation_frequency = "PT5M"
  window_duration      = "PT10M"
  # The table is there once the first line is.
  skip_query_validation   = true
  auto_mitigation_enabled = true
  tags                    = local.tags

  criteria {
    query                   = "Syslog | where ProcessName == 'worker-manager-health' and SyslogMessage == 'alive'"
    time_aggregation_method = "Count"
    operator                = "LessThan"
    threshold               = 1
  }

  dynamic "action" {
    for_each = length(var.alarm_actions) > 0 ? [var.alarm_actions] : []

    content {
      action_groups = action.value
    }
  }
}
