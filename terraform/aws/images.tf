# Repositories for the images that are not given, and what can be known of those that are.

locals {
  given_images = { manager = var.manager_image, worker = var.worker_image }
  repositories = { for who, image in local.given_images : who => who if image == null }
  images = {
    for who, image in local.given_images :
    who => image != null ? image : "${aws_ecr_repository.this[who].repository_url}:${var.image_tag}"
  }
  manager_image = local.images["manager"]
  worker_image  = local.images["worker"]

  # A given image may be of ECR, too, and of another account: its name tells.
  ecr_pattern = "^([0-9]{12})\\.dkr\\.ecr\\.([a-z0-9-]+)\\.amazonaws\\.com(?:\\.cn)?/([^@:]+)"
  repository_arns = {
    for who, image in local.given_images : who => (
      image == null ? [aws_ecr_repository.this[who].arn] :
      [for part in regexall(local.ecr_pattern, image) : "arn:${local.partition}:ecr:${part[1]}:${part[0]}:repository/${part[2]}"]
    )
  }
}

resource "aws_ecr_repository" "this" {
  #checkov:skip=CKV_AWS_136: AWS's own key encrypts it; images have no secrets
  for_each             = local.repositories
  name                 = "${var.name}/${each.key}"
  image_tag_mutability = "IMMUTABLE"
  tags                 = local.tags

  image_scanning_configuration {
    scan_on_push = true
  }
}

resource "aws_ecr_lifecycle_policy" "this" {
  for_each   = aws_ecr_repository.this
  repository = each.value.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "Keep the last twenty images"
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 20 }
      action       = { type = "expire" }
    }]
  })
}
