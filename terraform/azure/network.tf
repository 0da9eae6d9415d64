# A network of our own where none is given. Manager and workers call out, and nobody calls them.

locals {
  own_network = var.subnet_id == null
  subnet_id   = local.own_network ? azurerm_subnet.this[0].id : var.subnet_id
}

resource "azurerm_virtual_network" "this" {
  count               = local.own_network ? 1 : 0
  name                = var.name
  resource_group_name = local.resource_group_name
  location            = var.location
  address_space       = [var.network_cidr]
  tags                = local.tags
}

resource "azurerm_subnet" "this" {
  count                           = local.own_network ? 1 : 0
  name                            = "machines"
  resource_group_name             = local.resource_group_name
  virtual_network_name            = azurerm_virtual_network.this[0].name
  address_prefixes                = [cidrsubnet(var.network_cidr, 2, 0)]
  default_outbound_access_enabled = false
  # Images and credentials come from there: past the NAT gateway, which is paid for by the byte.
  service_endpoints = ["Microsoft.Storage"]
}

# Azure's own rules let the network's machines talk to each other: these need not.
resource "azurerm_network_security_group" "this" {
  count               = local.own_network ? 1 : 0
  name                = var.name
  resource_group_name = local.resource_group_name
  location            = var.location
  tags                = local.tags

  security_rule {
    name                       = "nobody-calls-in"
    priority                   = 4000
    direction                  = "Inbound"
    access                     = "Deny"
    protocol                   = "*"
    source_address_prefix      = "*"
    source_port_range          = "*"
    destination_address_prefix = "*"
    destination_port_range     = "*"
  }
}

resource "azurerm_subnet_network_security_group_association" "this" {
  count                     = local.own_network ? 1 : 0
  subnet_id                 = azurerm_subnet.this[0].id
  network_security_group_id = azurerm_network_security_group.this[0].id
}

resource "azurerm_public_ip" "nat" {
  count               = local.own_network ? 1 : 0
  name                = "${var.name}-nat"
  resource_group_name = local.resource_group_name
  location            = var.location
  allocation_method   = "Static"
  sku                 = "Standard"
  tags                = local.tags
}

resource "azurerm_nat_gateway" "this" {
  count               = local.own_network ? 1 : 0
  name                = var.name
  resource_group_name = local.resource_group_name
  location            = var.location
  sku_name            = "Standard"
  tags                = local.tags
}

resource "azurerm_nat_gateway_public_ip_association" "this" {
  count                = local.own_network ? 1 : 0
  nat_gateway_id       = azurerm_nat_gateway.this[0].id
  public_ip_address_id = azurerm_public_ip.nat[0].id
}

resource "azurerm_subnet_nat_gateway_association" "this" {
  count          = local.own_network ? 1 : 0
  subnet_id      = azurerm_subnet.this[0].id
  nat_gateway_id = azurerm_nat_gateway.this[0].id
  # Machines wait for this one: by then there is a way out.
  depends_on = [azurerm_nat_gateway_public_ip_association.this]
}
