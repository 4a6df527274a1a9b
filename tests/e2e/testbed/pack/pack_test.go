package pack

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func TestTheSameInputPacksTheSameBytes(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	program := filepath.Join(directory, "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("static "), 1000), 0o700); err != nil {
		t.Fatal(err)
	}
	image := Image{
		Name: "registry.example/part/program:v1", Program: program, Path: "/usr/local/bin/program", User: "65532:65532",
		Labels: map[string]string{"org.opencontainers.image.title": "program", "a": "b"},
	}
	var archives [2][]byte
	for i := range archives {
		file := filepath.Join(directory, "image.tar")
		if err := image.Write(file); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = content
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of one image differ")
	}

	tag, err := name.NewTag(image.Name)
	if err != nil {
		t.Fatal(err)
	}
	packed, err := tarball.ImageFromPath(filepath.Join(directory, "image.tar"), &tag)
	if err != nil {
		t.Fatal(err)
	}
	config, err := packed.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.User != image.User || len(config.Config.Entrypoint) != 1 || config.Config.Entrypoint[0] != image.Path ||
		config.Config.Labels["a"] != "b" {
		t.Errorf("config = %+v", config.Config)
	}
}

func TestWhatCannotBePackedIsRefused(t *testing.T) {
	t.Parallel()
	output := filepath.Join(t.TempDir(), "image.tar")
	for _, image := range []Image{
		{},
		{Name: "a:b", Program: "/nonexistent", Path: "/p"},
		{Name: "a:b", Program: "/etc/hostname", Path: "relative"},
		{Name: "NOT A NAME", Program: "/etc/hostname", Path: "/p"},
	} {
		if err := image.Write(output); err == nil {
			t.Errorf("%+v was packed", image)
		}
	}
	if _, err := os.Stat(output); err == nil {
		t.Error("a refused image left an archive")
	}
}
