# A VPC of our own where none is given; who may talk to whom, in either.

locals {
  # By how many there are, which is known where the same configuration makes the VPC, too.
  own_vpc    = length(var.subnet_ids) == 0
  vpc_id     = local.own_vpc ? aws_vpc.this[0].id : var.vpc_id
  subnet_ids = local.own_vpc ? aws_subnet.private[*].id : var.subnet_ids
  zones      = 2
}

data "aws_availability_zones" "available" {
  #checkov:skip=CKV_AWS_394: subnets stay in the zone in which they were made
  count = local.own_vpc ? 1 : 0
  state = "available"

  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }
}

resource "aws_vpc" "this" {
  #checkov:skip=CKV2_AWS_11: nobody can call in; flow logs of what bundles fetch cost more than the manager
  count                = local.own_vpc ? 1 : 0
  cidr_block           = var.network_cidr
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = merge(local.tags, { Name = var.name })
}

# The default group lets its members talk to each other: nobody is to be one by accident.
resource "aws_default_security_group" "this" {
  count  = local.own_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${var.name}-unused" })
}

resource "aws_subnet" "private" {
  count             = local.own_vpc ? local.zones : 0
  vpc_id            = aws_vpc.this[0].id
  availability_zone = data.aws_availability_zones.available[0].names[count.index]
  cidr_block        = cidrsubnet(var.network_cidr, 2, count.index)
  tags              = merge(local.tags, { Name = "${var.name}-private-${count.index}" })

  # A zone that AWS adds later does not move it.
  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_subnet" "public" {
  count             = local.own_vpc ? 1 : 0
  vpc_id            = aws_vpc.this[0].id
  availability_zone = data.aws_availability_zones.available[0].names[0]
  cidr_block        = cidrsubnet(var.network_cidr, 4, 15)
  tags              = merge(local.tags, { Name = "${var.name}-public" })

  # A zone that AWS adds later does not move it.
  lifecycle {
    ignore_changes = [availability_zone]
  }
}

resource "aws_internet_gateway" "this" {
  count  = local.own_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = var.name })
}

resource "aws_eip" "nat" {
  count      = local.own_vpc ? 1 : 0
  domain     = "vpc"
  tags       = merge(local.tags, { Name = var.name })
  depends_on = [aws_internet_gateway.this]
}

resource "aws_nat_gateway" "this" {
  count         = local.own_vpc ? 1 : 0
  allocation_id = aws_eip.nat[0].id
  subnet_id     = aws_subnet.public[0].id
  tags          = merge(local.tags, { Name = var.name })
}

resource "aws_route_table" "public" {
  count  = local.own_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${var.name}-public" })
}

resource "aws_route" "public" {
  count                  = local.own_vpc ? 1 : 0
  route_table_id         = aws_route_table.public[0].id
  destination_cidr_block = "0.0.0.0/0"
  gateway_id             = aws_internet_gateway.this[0].id
}

resource "aws_route_table_association" "public" {
  count          = local.own_vpc ? 1 : 0
  route_table_id = aws_route_table.public[0].id
  subnet_id      = aws_subnet.public[0].id
}

resource "aws_route_table" "private" {
  count  = local.own_vpc ? 1 : 0
  vpc_id = aws_vpc.this[0].id
  tags   = merge(local.tags, { Name = "${var.name}-private" })
}

resource "aws_route" "private" {
  count                  = local.own_vpc ? 1 : 0
  route_table_id         = aws_route_table.private[0].id
  destination_cidr_block = "0.0.0.0/0"
  nat_gateway_id         = aws_nat_gateway.this[0].id
}

resource "aws_route_table_association" "private" {
  count          = local.own_vpc ? local.zones : 0
  route_table_id = aws_route_table.private[0].id
  subnet_id      = aws_subnet.private[count.index].id
}

# ECR keeps layers in S3: without this every worker's image is paid for at the NAT gateway.
resource "aws_vpc_endpoint" "s3" {
  count             = local.own_vpc ? 1 : 0
  vpc_id            = aws_vpc.this[0].id
  service_name      = "com.amazonaws.${local.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = [aws_route_table.private[0].id]
  tags              = merge(local.tags, { Name = "${var.name}-s3" })
}

# Manager and workers call out, and nobody calls them.
resource "aws_security_group" "this" {
  for_each    = { manager = "The manager", workers = "Workers and their machines", home = "The manager's home" }
  name_prefix = "${var.name}-${each.key}-"
  description = each.value
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-${each.key}" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_egress_rule" "out" {
  for_each          = toset(["manager", "workers"])
  security_group_id = aws_security_group.this[each.key].id
  description       = "To the server, AWS, and whatever bundles fetch"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "home" {
  security_group_id            = aws_security_group.this["home"].id
  referenced_security_group_id = aws_security_group.this["manager"].id
  description                  = "NFS, from the manager alone"
  from_port                    = 2049
  to_port                      = 2049
  ip_protocol                  = "tcp"
  tags                         = local.tags
}
