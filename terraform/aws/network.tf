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

# A balancer wants two of them, a NAT gateway one.
resource "aws_subnet" "public" {
  count             = !local.own_vpc ? 0 : local.own_server && var.server_public ? local.zones : 1
  vpc_id            = aws_vpc.this[0].id
  availability_zone = data.aws_availability_zones.available[0].names[count.index]
  cidr_block        = cidrsubnet(var.network_cidr, 4, 15 - count.index)
  tags              = merge(local.tags, { Name = "${var.name}-public-${count.index}" })

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
  count          = length(aws_subnet.public)
  route_table_id = aws_route_table.public[0].id
  subnet_id      = aws_subnet.public[count.index].id
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

# Manager and workers call out, and nobody calls them. A server is called by its balancer. (EC2 takes
# no apostrophe in a description.)
resource "aws_security_group" "this" {
  #checkov:skip=CKV2_AWS_5: each of them is attached, by its key, which checkov does not follow
  for_each = merge(
    { manager = "The manager", workers = "Workers and their machines", home = "Homes of manager and server" },
    local.own_server ? { balancer = "Load balancer of the server", server = "The server", database = "Database of the server" } : {},
  )
  name_prefix = "${var.name}-${each.key}-"
  description = each.value
  vpc_id      = local.vpc_id
  tags        = merge(local.tags, { Name = "${var.name}-${each.key}" })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_egress_rule" "out" {
  for_each          = toset(concat(["manager", "workers"], local.own_server ? ["server"] : []))
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

# Around a server that is made here, by who asks and who answers.
locals {
  server_paths = !local.own_server ? {} : {
    manager-balancer = { from = "manager", to = "balancer", port = local.balancer_port }
    workers-balancer = { from = "workers", to = "balancer", port = local.balancer_port }
    server-balancer  = { from = "server", to = "balancer", port = local.balancer_port }
    balancer-server  = { from = "balancer", to = "server", port = local.server_port }
    server-database  = { from = "server", to = "database", port = local.database_port }
    server-home      = { from = "server", to = "home", port = 2049 }
  }
}

resource "aws_vpc_security_group_ingress_rule" "server" {
  for_each                     = local.server_paths
  security_group_id            = aws_security_group.this[each.value.to].id
  referenced_security_group_id = aws_security_group.this[each.value.from].id
  description                  = "From the ${each.value.from} of ${var.name}"
  from_port                    = each.value.port
  to_port                      = each.value.port
  ip_protocol                  = "tcp"
  tags                         = local.tags
}

resource "aws_vpc_security_group_egress_rule" "balancer" {
  count                        = local.own_server ? 1 : 0
  security_group_id            = aws_security_group.this["balancer"].id
  referenced_security_group_id = aws_security_group.this["server"].id
  description                  = "To the server alone"
  from_port                    = local.server_port
  to_port                      = local.server_port
  ip_protocol                  = "tcp"
  tags                         = local.tags
}

# Whoever else may ask. To a public balancer manager and workers come by the NAT gateway.
resource "aws_vpc_security_group_ingress_rule" "client" {
  for_each          = toset(local.own_server ? var.server_client_cidrs : [])
  security_group_id = aws_security_group.this["balancer"].id
  cidr_ipv4         = each.key
  description       = "From clients"
  from_port         = local.balancer_port
  to_port           = local.balancer_port
  ip_protocol       = "tcp"
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "nat" {
  count             = local.own_server && local.own_vpc && var.server_public ? 1 : 0
  security_group_id = aws_security_group.this["balancer"].id
  cidr_ipv4         = "${aws_eip.nat[0].public_ip}/32"
  description       = "From manager and workers, by the NAT gateway"
  from_port         = local.balancer_port
  to_port           = local.balancer_port
  ip_protocol       = "tcp"
  tags              = local.tags
}
