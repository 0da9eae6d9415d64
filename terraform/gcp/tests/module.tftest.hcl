# What the module makes of its variables, with a stand-in for Google Cloud.

mock_provider "google" {
  mock_resource "google_service_account" {
    defaults = { email = "mock@my-project.iam.gserviceaccount.com", name = "projects/my-project/serviceAccounts/mock" }
  }
  mock_resource "google_artifact_registry_repository" {
    defaults = { name = "projects/my-project/locations/europe-west4/repositories/mock" }
  }
  mock_resource "google_secret_manager_secret" {
    defaults = { id = "projects/my-project/secrets/mock" }
  }
  mock_resource "google_compute_network" {
    defaults = { id = "projects/my-project/global/networks/mock" }
  }
  mock_resource "google_compute_subnetwork" {
    defaults = { id = "projects/my-project/regions/europe-west4/subnetworks/mock" }
  }
  mock_data "google_compute_subnetwork" {
    defaults = { network = "https://www.googleapis.com/compute/v1/projects/host-project/global/networks/theirs" }
  }
}

variables {
  project    = "my-project"
  region     = "europe-west4"
  server_url = "https://bundles.example.org"
}

run "everything_from_nothing" {
  assert {
    condition     = length(google_compute_network.this) == 1 && length(google_artifact_registry_repository.this) == 1 && length(google_secret_manager_secret.credentials) == 1
    error_message = "A network, a repository and a secret are made where none is given."
  }
  assert {
    condition     = strcontains(join(" ", output.manager_options), "--provisioning spot") && contains(output.manager_options, "--no-external-ip")
    error_message = "Workers are on spot machines that nobody reaches."
  }
  assert {
    condition     = output.manager_image == "europe-west4-docker.pkg.dev/my-project/worker-manager/manager:1"
    error_message = "The image is in the repository made here."
  }
  assert {
    condition     = toset([for one in google_secret_manager_secret_iam_member.workers : one.role]) == toset(["roles/secretmanager.secretVersionManager", "roles/secretmanager.viewer", "roles/secretmanager.secretAccessor"]) && google_secret_manager_secret_iam_member.workers["roles/secretmanager.secretAccessor"].member == google_project_iam_member.this["worker writes its log"].member
    error_message = "The manager adds versions of the workers' secret, and workers read them."
  }
  assert {
    condition     = [for rule in google_compute_firewall.health.allow : rule.ports] == [tolist(["9465"])] && !contains(google_compute_firewall.health.source_ranges, "0.0.0.0/0")
    error_message = "Google's health check gets in, and nobody else."
  }
  assert {
    condition     = google_compute_instance_group_manager.manager.update_policy[0].max_surge_fixed == 0
    error_message = "One manager at a time has the home."
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

run "what_is_there_is_used" {
  variables {
    name               = "existing"
    subnet_id          = "projects/host-project/regions/europe-west4/subnetworks/theirs"
    worker_image       = "europe-docker.pkg.dev/other/worker/worker:7"
    manager_image      = "ghcr.io/example/worker-manager:1"
    credentials_secret = "projects/my-project/secrets/theirs"
    zone               = "europe-west4-c"
    provisioning       = "standard"
  }

  assert {
    condition     = length(google_compute_network.this) + length(google_compute_router_nat.this) + length(google_artifact_registry_repository.this) + length(google_secret_manager_secret.credentials) == 0
    error_message = "No network, repository or secret for the manager is made."
  }
  assert {
    condition     = strcontains(join(" ", output.manager_options), "--network projects/host-project/global/networks/theirs --subnetwork ${var.subnet_id}")
    error_message = "The given network is used."
  }
  assert {
    condition     = google_compute_firewall.health.project == "host-project"
    error_message = "A rule is where its network is."
  }
  assert {
    condition     = output.manager_service.zone == "europe-west4-c" && !strcontains(module.machine.cloud_config, "docker-credential-gcr")
    error_message = "The manager is where it was asked to be, and signs in to no registry that is not Google's."
  }
}

run "gpus" {
  variables {
    name         = "gpus"
    worker_gpus  = 2
    gpu_type     = "nvidia-l4"
    machine_type = "g2-standard-24"
  }

  assert {
    condition     = strcontains(join(" ", output.manager_options), "--machine-type g2-standard-24 --gpu-type nvidia-l4")
    error_message = "The manager is told which."
  }
}

run "values_that_make_no_sense_are_refused" {
  command = plan

  variables {
    project          = "My Project"
    region           = "europe-west4-b"
    server_url       = "bundles.example.org"
    name             = "a-name-that-is-too-long-for-an-account"
    max_workers      = -1
    worker_gpus      = 1
    worker_memory_mb = 100
    provisioning     = "preemptible"
    subnet_id        = "default"
    tags             = { CostCentre = "4711" }
  }

  expect_failures = [
    var.project, var.region, var.server_url, var.name, var.max_workers, var.worker_gpus, var.worker_memory_mb,
    var.provisioning, var.subnet_id, var.tags,
  ]
}

run "the_manager_is_in_the_region" {
  command = plan

  variables {
    zone = "us-central1-a"
  }

  expect_failures = [var.zone]
}
