# A repository for the images that are not given.

locals {
  given_images   = { manager = var.manager_image, worker = var.worker_image }
  own_repository = var.manager_image == null || var.worker_image == null
  images = {
    for who, image in local.given_images :
    who => image != null ? image : "${var.region}-docker.pkg.dev/${var.project}/${google_artifact_registry_repository.this[0].repository_id}/${who}:${var.image_tag}"
  }
  manager_image = local.images["manager"]
  worker_image  = local.images["worker"]

  # Of which registries of Google's the manager's machine needs a token: the image's name tells.
  registries = (
    var.manager_image == null ? ["${var.region}-docker.pkg.dev"] :
    regexall("^[a-z0-9-]+-docker\\.pkg\\.dev", var.manager_image)
  )
}

resource "google_artifact_registry_repository" "this" {
  count         = local.own_repository ? 1 : 0
  project       = var.project
  location      = var.region
  repository_id = var.name
  description   = "Images of worker-manager and its workers"
  format        = "DOCKER"
  labels        = local.labels
  depends_on    = [google_project_service.this]

  docker_config {
    immutable_tags = true
  }

  cleanup_policies {
    id     = "keep-the-last-twenty"
    action = "KEEP"

    most_recent_versions {
      keep_count = 20
    }
  }

  cleanup_policies {
    id     = "delete-what-is-older"
    action = "DELETE"

    condition {
      older_than = "2592000s"
    }
  }
}
