# A registry for the images that are not given.

locals {
  given_images = { manager = var.manager_image, worker = var.worker_image }
  own_registry = var.manager_image == null || var.worker_image == null
  images = {
    for who, image in local.given_images :
    who => image != null ? image : "${azurerm_container_registry.this[0].login_server}/${who}:${var.image_tag}"
  }
  manager_image = local.images["manager"]
  worker_image  = local.images["worker"]

  # A given image may be of a registry of Azure's, too: its name tells. Whoever gives it lets the
  # identities pull it.
  registries = {
    for who, image in local.given_images : who => (
      image == null ? [azurerm_container_registry.this[0].login_server] :
      regexall("^[a-z0-9]+\\.azurecr\\.io", image)
    )
  }
}

resource "azurerm_container_registry" "this" {
  count               = local.own_registry ? 1 : 0
  name                = local.unique_name
  resource_group_name = local.resource_group_name
  location            = var.location
  sku                 = "Basic"
  admin_enabled       = false # its password would be in the state
  tags                = local.tags
}
