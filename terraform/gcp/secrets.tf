# Empty ones: the manager puts workers' credentials into the first, and you the manager's into the
# second. So none is in a state, plan or history of Terraform.

locals {
  credentials_secret = var.credentials_secret != null ? var.credentials_secret : google_secret_manager_secret.credentials[0].id
}

resource "google_secret_manager_secret" "workers" {
  project    = var.project
  secret_id  = "${var.name}-workers"
  labels     = local.labels
  depends_on = [google_project_service.this]

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }
}

resource "google_secret_manager_secret" "credentials" {
  count      = var.credentials_secret == null ? 1 : 0
  project    = var.project
  secret_id  = "${var.name}-credentials"
  labels     = local.labels
  depends_on = [google_project_service.this]

  replication {
    user_managed {
      replicas {
        location = var.region
      }
    }
  }
}
