// Package pack writes container images of one static program each, the same bytes for the same
// input: what the Dockerfile makes, where there is no builder and no registry.
package pack

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image is one image to pack.
type Image struct {
	Name    string // with its tag
	Program string // file on this machine
	Path    string // of the program in the image; its entry point
	User    string
	Labels  map[string]string
}

// Write packs the image into a docker archive, which appears whole or not at all.
func (i Image) Write(file string) error {
	if i.Name == "" || i.Program == "" || file == "" {
		return errors.New("image, program and output are needed")
	}
	if !path.IsAbs(i.Path) {
		return fmt.Errorf("path %q: want an absolute path in the image", i.Path)
	}
	tag, err := name.NewTag(i.Name)
	if err != nil {
		return err
	}
	layer, err := i.layer()
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := image.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{
		User:       i.User,
		Entrypoint: []string{i.Path},
		WorkingDir: "/",
		Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels:     i.Labels,
	}
	if image, err = mutate.ConfigFile(image, config); err != nil {
		return err
	}
	next := file + ".next"
	if err := tarball.WriteToFile(next, tag, image); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	return os.Rename(next, file)
}

// layer holds the program and the directories above it, little compressed: it is unpacked on the
// machine that packs it.
func (i Image) layer() (v1.Layer, error) {
	info, err := os.Stat(i.Program)
	if err != nil {
		return nil, err
	}
	var head bytes.Buffer
	writer := tar.NewWriter(&head)
	var above string
	for part := range strings.SplitSeq(strings.Trim(path.Dir(i.Path), "/"), "/") {
		if part == "" {
			continue
		}
		above += part + "/"
		if err := writer.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: above, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return nil, err
		}
	}
	if err := writer.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(i.Path, "/"), Mode: 0o755,
		Size: info.Size(), ModTime: time.Unix(0, 0),
	}); err != nil {
		return nil, err
	}
	// A tar file ends on a block's boundary, with two empty blocks.
	const block = 512
	tail := make([]byte, (block-info.Size()%block)%block+2*block)

	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		program, err := os.Open(i.Program)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(head.Bytes()), program, bytes.NewReader(tail)), program}, nil
	}, tarball.WithCompressionLevel(gzip.BestSpeed))
}
