# Podman's part of a peer: containers that stay are Quadlet's units.
shown='created={{json .Created}} started={{json .State.StartedAt}} finished={{json .State.FinishedAt}} running={{.State.Running}}'
image=localhost/web:1
load() {
	local loaded
	loaded=$(podman load -q < /dev/disk/by-id/virtio-image) && podman tag "${loaded##*: }" "$image"
}
start() { podman run -d --name "$1" "$image"; }
keep() {
	mkdir -p /etc/containers/systemd
	{
		printf '[Container]\nContainerName=%s\nImage=%s\n' "$1" "$image"
		if [ "${2-}" = -p ]; then printf 'PublishPort=%s\n' "$3"; fi
		printf '[Service]\nRestart=always\n[Install]\nWantedBy=multi-user.target\n'
	} > "/etc/containers/systemd/$1.container"
	systemctl daemon-reload && systemctl start "$1.service"
}
state() { podman inspect --type container -f "$shown" "$1"; }
count() { podman ps -q | wc -l; }

# since tells when it was able to run a container: it has no daemon, so that is when
# systemd begins to start services.
since() { systemctl show -P ActiveEnterTimestampMonotonic basic.target; }

# event renews what stands above the containers, which is systemd.
event() {
	say "event what=$1"
	tell c-{1..5}
	say "begin what=$1"
	must "${@:2}"
	until podman version > /dev/null; do sleep 0.2; done
	say "end what=$1"
	for i in {1..5}; do runs "c-$i"; done
	tell c-{1..5}
}

daemons() { event restart systemctl daemon-reexec; }
