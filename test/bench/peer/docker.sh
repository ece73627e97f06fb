# Docker's part of a peer: docker.io with its defaults.
shown='created={{json .Created}} started={{json .State.StartedAt}} finished={{json .State.FinishedAt}} running={{.State.Running}}'
load() { docker load -q < /dev/disk/by-id/virtio-image; }
start() { docker run -d --name "$1" web:1; }
keep() { docker run -d --name "$1" --restart=always "${@:2}" web:1; }
state() { docker inspect --type container -f "$shown" "$1"; }
count() { docker ps -q | wc -l; }

# since tells when it was able to run a container: its API serves.
since() { systemctl show -P ActiveEnterTimestampMonotonic docker.service; }

# event ends the daemon in one way and tells what that did to the containers.
event() {
	must systemctl reset-failed docker.service # or systemd refuses the fourth start in a minute
	say "event what=$1"
	tell c-{1..5}
	say "begin what=$1"
	must "${@:2}"
	until docker version > /dev/null; do sleep 0.2; done
	say "end what=$1"
	sleep 8 # containerd comes back after five seconds
	for i in {1..5}; do runs "c-$i"; done
	tell c-{1..5}
}

daemons() {
	event restart systemctl restart docker.service
	event kill systemctl kill --signal=KILL --kill-whom=main docker.service
	echo '{"live-restore": true}' > /etc/docker/daemon.json
	must systemctl reset-failed docker.service
	must systemctl restart docker.service
	for i in {1..5}; do runs "c-$i"; done
	event live-restart systemctl restart docker.service
	event live-kill systemctl kill --signal=KILL --kill-whom=main docker.service
	event containerd systemctl kill --signal=KILL --kill-whom=main containerd.service
}
