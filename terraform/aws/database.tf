# The server's database, where the server is made here: PostgreSQL of RDS, which the server alone
# reaches, and whose password is made by RDS and known to no state or plan of Terraform.

locals {
  database_port = 5432
  # AWS's longest. The server is told the password when its task starts: with a new one it must be
  # started anew, which is to be the operator's hour.
  password_days = 1000
}

resource "aws_db_subnet_group" "this" {
  count      = local.own_server ? 1 : 0
  name       = var.name
  subnet_ids = local.subnet_ids
  tags       = local.tags
}

resource "aws_db_parameter_group" "this" {
  count       = local.own_server ? 1 : 0
  name_prefix = "${var.name}-"
  family      = "postgres17"
  description = "TLS for all; slow statements and changes of tables are logged"
  tags        = local.tags

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "1000"
  }

  parameter {
    name  = "log_statement"
    value = "ddl"
  }

  lifecycle {
    create_before_destroy = true
  }
}

# RDS would make them itself, and keep them for ever.
resource "aws_cloudwatch_log_group" "database" {
  #checkov:skip=CKV_AWS_158: AWS's own key encrypts it; there is no secret in it
  #checkov:skip=CKV_AWS_338: log_retention_days is the user's choice
  for_each          = toset(local.own_server ? ["postgresql", "upgrade"] : [])
  name              = "/aws/rds/instance/${var.name}/${each.key}"
  retention_in_days = var.log_retention_days
  tags              = local.tags
}

resource "aws_db_instance" "this" {
  #checkov:skip=CKV_AWS_118: metrics of the machine by the second need a role of their own; by the minute they come by themselves
  #checkov:skip=CKV_AWS_157: database_multi_zone is the user's choice
  #checkov:skip=CKV_AWS_161: one user with one password, which is in a secret
  #checkov:skip=CKV_AWS_353: slow statements are in the log
  count                 = local.own_server ? 1 : 0
  identifier            = var.name
  engine                = "postgres"
  engine_version        = "17"
  instance_class        = var.database_instance_class
  allocated_storage     = 20
  max_allocated_storage = 1000
  storage_type          = "gp3"
  storage_encrypted     = true
  multi_az              = var.database_multi_zone
  tags                  = local.tags

  db_name                     = "bundles"
  username                    = "bundles"
  manage_master_user_password = true

  port                   = local.database_port
  publicly_accessible    = false
  db_subnet_group_name   = aws_db_subnet_group.this[0].name
  vpc_security_group_ids = [aws_security_group.this["database"].id]
  parameter_group_name   = aws_db_parameter_group.this[0].name

  auto_minor_version_upgrade      = true
  backup_retention_period         = 14
  copy_tags_to_snapshot           = true
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]

  # What is protected cannot be destroyed: there is no snapshot to take on the way.
  deletion_protection = var.server_deletion_protection
  skip_final_snapshot = true

  depends_on = [aws_cloudwatch_log_group.database]
}

resource "aws_secretsmanager_secret_rotation" "database" {
  #checkov:skip=CKV_AWS_304: see password_days
  count              = local.own_server ? 1 : 0
  secret_id          = local.database_secret_arn
  rotate_immediately = false

  rotation_rules {
    automatically_after_days = local.password_days
  }
}

locals {
  database_secret_arn = one([for one in aws_db_instance.this : one.master_user_secret[0].secret_arn])
}
