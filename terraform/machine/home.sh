#!/bin/sh
# home.sh DEVICE DIRECTORY USER: mounts the disk that is the home, for a user alone.
set -eu
device=$1 directory=$2 user=$3

# 2: there is nothing on it. Whatever else it says, what is there is not to be overwritten.
found=0
blkid -p "$device" > /dev/null || found=$?
if [ "$found" = 2 ]; then
  mkfs.ext4 -q "$device"
fi
mkdir -p "$directory"
mountpoint -q "$directory" || mount -o noatime,nosuid,nodev "$device" "$directory"
chown "$user:$user" "$directory"
chmod 0700 "$directory"
