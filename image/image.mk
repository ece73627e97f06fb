# The image builder. It installs what it needs, keeps packages and finished steps
# in build/cache, and is safe to repeat. UPDATE=1 looks for newer Debian packages;
# RELEASE=1 builds what trusts the keys of image/keys alone.

.PHONY: image image-check bundle

IMAGE_FLAGS := $(if $(UPDATE),-update) $(if $(SEED),-seed $(SEED)) $(if $(RELEASE),-release)

image: ## Build the root, the kernel image and the disk image into build/
	go run ./image $(IMAGE_FLAGS)

bundle: ## Build the update bundle too; KEY=FILE signs it, RELEASE=1 trusts no development key
	go run ./image -bundle $(IMAGE_FLAGS) $(if $(KEY),-key $(KEY))

image-check: ## Build the root a second time and compare every byte
	go run ./image -check-reproducible $(if $(RELEASE),-release)
