# What bundles contain, where the server is made here: a bucket that nobody but the server reads.

locals {
  contents_prefix = "contents"
}

resource "aws_s3_bucket" "contents" {
  #checkov:skip=CKV_AWS_18: who made and changed a bundle is in the server's database; nobody else may read the bucket
  #checkov:skip=CKV_AWS_144: versions are kept in the region; a copy in another one is a choice that costs as much again
  #checkov:skip=CKV_AWS_145: S3's own key encrypts it; a key of one's own is paid for at each request
  #checkov:skip=CKV2_AWS_62: the server knows what it writes; nobody waits for events
  count         = local.own_server ? 1 : 0
  bucket_prefix = "${var.name}-"
  force_destroy = !var.server_deletion_protection
  tags          = local.tags
}

resource "aws_s3_bucket_public_access_block" "contents" {
  count                   = local.own_server ? 1 : 0
  bucket                  = aws_s3_bucket.contents[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "contents" {
  count  = local.own_server ? 1 : 0
  bucket = aws_s3_bucket.contents[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "contents" {
  count  = local.own_server ? 1 : 0
  bucket = aws_s3_bucket.contents[0].id

  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "AES256"
    }
  }
}

# What was removed by mistake, or belongs to a database that was restored, is there for a month.
resource "aws_s3_bucket_versioning" "contents" {
  count  = local.own_server ? 1 : 0
  bucket = aws_s3_bucket.contents[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "contents" {
  count  = local.own_server ? 1 : 0
  bucket = aws_s3_bucket.contents[0].id

  rule {
    id     = "removed-and-abandoned"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 7
    }

    noncurrent_version_expiration {
      noncurrent_days = 30
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  depends_on = [aws_s3_bucket_versioning.contents]
}

resource "aws_s3_bucket_policy" "contents" {
  count  = local.own_server ? 1 : 0
  bucket = aws_s3_bucket.contents[0].id
  policy = data.aws_iam_policy_document.contents[0].json

  depends_on = [aws_s3_bucket_public_access_block.contents]
}

data "aws_iam_policy_document" "contents" {
  count = local.own_server ? 1 : 0

  statement {
    sid       = "EncryptedOnTheWay"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.contents[0].arn, "${aws_s3_bucket.contents[0].arn}/*"]

    principals {
      type        = "*"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}
