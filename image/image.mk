# The image builder. It installs what it needs, keeps packages and finished steps
# in build/cache, and is safe to repeat. UPDATE=1 looks for newer Debian packages.

.PHONY: image image-check

image: ## Build the root, the kernel image and the disk image into build/
	go run ./image $(if $(UPDATE),-update) $(if $(SEED),-seed $(SEED))

image-check: ## Build the root a second time and compare every byte
	go run ./image -check-reproducible
