output "manager_options" {
  description = "All options of `worker-manager gcp-batch`, as the service runs it."
  value       = local.options
}

output "owner" {
  description = "The mark of the manager's jobs: what the file `owner` of its home has."
  value       = local.owner
}

output "manager_identity" {
  description = "Who the manager is: a service account."
  value       = google_service_account.this["manager"].email
}

output "worker_identity" {
  description = "Who workers' machines are: a service account."
  value       = google_service_account.this["worker"].email
}

output "manager_image" {
  description = "The image of the manager: push it where it is in the repository made here."
  value       = local.manager_image
}

output "worker_image" {
  description = "The image of workers: push it where it is in the repository made here."
  value       = local.worker_image
}

output "credentials_secret" {
  description = "The secret with the manager's credentials: put its value there where it was made here."
  value       = local.credentials_secret
}

output "manager_log" {
  description = "Where what the manager prints is: a filter of Cloud Logging."
  value = join(" AND ", [
    "logName=\"projects/${var.project}/logs/cos_containers\"",
    "jsonPayload.\"cos.googleapis.com/container_name\"=\"worker-manager\"",
    "jsonPayload._HOSTNAME=~\"^${var.name}-manager-\"",
  ])
}

output "worker_log" {
  description = "Where what workers print is: a filter of Cloud Logging."
  value       = "logName=\"projects/${var.project}/logs/batch_task_logs\""
}

output "manager_service" {
  description = "The manager as a service: zone and managed instance group."
  value       = { zone = local.zone, instance_group = google_compute_instance_group_manager.manager.name }
}

output "subnet_id" {
  description = "The subnetwork of manager and workers."
  value       = local.subnet_id
}
