package secret

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

// TPM opens the machine's TPM; errNoTPM when it has none.
type TPM func() (transport.TPMCloser, error)

// tpmDevice is the kernel's resource manager of a TPM 2.0, which keeps users apart.
const tpmDevice = "/dev/tpmrm0"

var (
	errNoTPM = errors.New("the machine has no TPM 2.0")
	// errForeign: the TPM is another one, or was cleared.
	errForeign = errors.New("the TPM did not seal it, or was cleared since")
)

// DeviceTPM opens the TPM of this machine.
func DeviceTPM() (transport.TPMCloser, error) {
	tpm, err := linuxtpm.Open(tpmDevice)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoTPM
	}
	return tpm, err
}

// blob is a key that only the TPM can open which made it.
type blob struct {
	Public, Private []byte
}

// sealTo has the TPM seal a key to itself. It asks for no state of the machine (PCR):
// each update changes that, and would lock the owner out (docs/decisions/0026).
func sealTo(open TPM, key []byte) (b blob, err error) {
	err = withRoot(open, func(tpm transport.TPM, root *tpm2.CreatePrimaryResponse) error {
		public, err := root.OutPublic.Contents()
		if err != nil {
			return err
		}
		made, err := tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: root.ObjectHandle, Name: root.Name, Auth: session(root, *public, tpm2.AESEncryption(128, tpm2.EncryptIn))},
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				// NoDA: wrong passwords of others to the TPM must not lock it.
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
			}),
		}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("seal a key to the TPM: %w", err)
		}
		b = blob{Public: tpm2.Marshal(made.OutPublic), Private: tpm2.Marshal(made.OutPrivate)}
		return nil
	})
	return b, err
}

// unseal gives the key of a blob, or errForeign.
func unseal(open TPM, b blob) (key []byte, err error) {
	public, err1 := tpm2.Unmarshal[tpm2.TPM2BPublic](b.Public)
	private, err2 := tpm2.Unmarshal[tpm2.TPM2BPrivate](b.Private)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("read the sealed key: %w", err)
	}
	err = withRoot(open, func(tpm transport.TPM, root *tpm2.CreatePrimaryResponse) error {
		rootPublic, err := root.OutPublic.Contents()
		if err != nil {
			return err
		}
		loaded, err := tpm2.Load{
			ParentHandle: tpm2.AuthHandle{Handle: root.ObjectHandle, Name: root.Name, Auth: tpm2.PasswordAuth(nil)},
			InPrivate:    *private, InPublic: *public,
		}.Execute(tpm)
		if errors.Is(err, tpm2.TPMRCIntegrity) {
			return errForeign
		}
		if err != nil {
			return fmt.Errorf("load the sealed key into the TPM: %w", err)
		}
		defer flush(tpm, loaded.ObjectHandle)
		opened, err := tpm2.Unseal{
			ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: session(root, *rootPublic, tpm2.AESEncryption(128, tpm2.EncryptOut))},
		}.Execute(tpm)
		if err != nil {
			return fmt.Errorf("open the sealed key in the TPM: %w", err)
		}
		key = opened.OutData.Buffer
		return nil
	})
	return key, err
}

// withRoot runs fn with the TPM's storage root key, which each TPM makes anew from its
// own seed, always the same.
func withRoot(open TPM, fn func(transport.TPM, *tpm2.CreatePrimaryResponse) error) error {
	tpm, err := open()
	if err != nil {
		return err
	}
	defer tpm.Close()
	root, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(tpm)
	if err != nil {
		return fmt.Errorf("make the TPM's storage root key: %w", err)
	}
	defer flush(tpm, root.ObjectHandle)
	return fn(tpm, root)
}

// session keeps what a command carries from who listens on the wires to the TPM.
func session(root *tpm2.CreatePrimaryResponse, public tpm2.TPMTPublic, encryption tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, encryption, tpm2.Salted(root.ObjectHandle, public))
}

func flush(tpm transport.TPM, handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(tpm) // closing does so too
}
