# Who may do what. Every account has what it needs in the one place where it needs it; where Google
# knows no narrower place that is the project.

resource "google_service_account" "this" {
  for_each     = { manager = "The manager", worker = "Workers' machines" }
  project      = var.project
  account_id   = "${var.name}-${each.key == "manager" ? "mgr" : "wrk"}"
  display_name = "${each.value} of ${var.name}"
  depends_on   = [google_project_service.this]
}

locals {
  members = { for who, account in google_service_account.this : who => "serviceAccount:${account.email}" }

  project_roles = {
    # GCP Batch has no permissions by label or queue: the manager itself looks at nothing but its own.
    "manager submits, lists and ends jobs" = { who = "manager", role = "roles/batch.jobsEditor" }
    "manager reads workers' logs"          = { who = "manager", role = "roles/logging.viewer" }
    "manager writes its log"               = { who = "manager", role = "roles/logging.logWriter" }
    "worker's machine reports to Batch"    = { who = "worker", role = "roles/batch.agentReporter" }
    "worker writes its log"                = { who = "worker", role = "roles/logging.logWriter" }
  }
}

resource "google_project_iam_member" "this" {
  for_each = local.project_roles
  project  = var.project
  role     = each.value.role
  member   = local.members[each.value.who]
}

resource "google_service_account_iam_member" "manager" {
  service_account_id = google_service_account.this["worker"].name
  role               = "roles/iam.serviceAccountUser"
  member             = local.members["manager"]
}

# Adds and destroys versions, and cannot read them.
resource "google_secret_manager_secret_iam_member" "workers" {
  for_each = {
    "roles/secretmanager.secretVersionManager" = "manager"
    "roles/secretmanager.viewer"               = "manager"
    "roles/secretmanager.secretAccessor"       = "worker"
  }
  project   = var.project
  secret_id = google_secret_manager_secret.workers.secret_id
  role      = each.key
  member    = local.members[each.value]
}

resource "google_secret_manager_secret_iam_member" "credentials" {
  count     = var.credentials_secret == null ? 1 : 0
  project   = var.project
  secret_id = google_secret_manager_secret.credentials[0].secret_id
  role      = "roles/secretmanager.secretAccessor"
  member    = local.members["manager"]
}

resource "google_artifact_registry_repository_iam_member" "this" {
  for_each   = { for who, image in local.given_images : who => who if image == null }
  project    = var.project
  location   = var.region
  repository = google_artifact_registry_repository.this[0].name
  role       = "roles/artifactregistry.reader"
  member     = local.members[each.key]
}
