package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// The version that the store would give.
const version = "1234567"

// writeCases writes random objects of every cached resource: for each the plural name and group,
// the stored value and the JSON that kube-apiserver makes of it, each after four bytes of length.
// First as Go's own codec reads and writes the type; then also by way of the internal version and
// the defaults, where that is stable, as it must be for what is stored to be what is read.
func writeCases(seed, count string) error {
	out := bufio.NewWriter(os.Stdout)
	plain, through := 0, 0
	err := randomObjects(seed, count, func(r served, gvk schema.GroupVersionKind, _ filler, object runtime.Object) error {
		stored, err := encode(runtime.ContentTypeProtobuf, object, gvk)
		if err != nil {
			return err
		}
		read, err := legacyscheme.Scheme.New(gvk)
		if err != nil {
			return err
		}
		if _, _, err := serializer(runtime.ContentTypeProtobuf).Decode(stored, &gvk, read); err != nil {
			return err
		}
		if set, is := read.(*appsv1.StatefulSet); is {
			for i := range set.Spec.VolumeClaimTemplates {
				set.Spec.VolumeClaimTemplates[i].Kind = "PersistentVolumeClaim"
				set.Spec.VolumeClaimTemplates[i].APIVersion = "v1"
			}
		}
		if err := write4(out, r, stored, read, gvk); err != nil {
			return err
		}
		plain++
		stable, read, found := settled(stored, gvk)
		if !found {
			return nil
		}
		through++
		return write4(out, r, stable, read, gvk)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d objects, %d of them by way of the internal version, too\n", plain, through)
	return out.Flush()
}

func serializer(mediaType string) runtime.Serializer {
	info, _ := runtime.SerializerInfoForMediaType(legacyscheme.Codecs.SupportedMediaTypes(), mediaType)
	return info.Serializer
}

// encode gives the object its kind, as kube-apiserver's codecs do.
func encode(mediaType string, object runtime.Object, gvk schema.GroupVersionKind) ([]byte, error) {
	object.GetObjectKind().SetGroupVersionKind(gvk)
	return runtime.Encode(serializer(mediaType), object)
}

// reread reads what is stored as kube-apiserver does, and stores it again. What was read comes
// along, as it is answered.
func reread(stored []byte, gvk schema.GroupVersionKind) ([]byte, runtime.Object, error) {
	internal, err := runtime.Decode(legacyscheme.Codecs.UniversalDecoder(), stored)
	if err != nil {
		return nil, nil, err
	}
	external, err := legacyscheme.Scheme.ConvertToVersion(internal, gvk.GroupVersion())
	if err != nil {
		return nil, nil, err
	}
	again, err := encode(runtime.ContentTypeProtobuf, external, gvk)
	return again, external, err
}

// settled gives what a value is stored as once it was read and stored again, and what is answered
// then: defaults that come with the first reading are there. Not found where it can't be read, or
// changes again.
func settled(stored []byte, gvk schema.GroupVersionKind) ([]byte, runtime.Object, bool) {
	once, _, err := reread(stored, gvk)
	if err != nil {
		return nil, nil, false
	}
	twice, read, err := reread(once, gvk)
	return twice, read, err == nil && bytes.Equal(once, twice)
}

func write4(out io.Writer, r served, stored []byte, read runtime.Object, gvk schema.GroupVersionKind) error {
	accessor, err := meta.Accessor(read)
	if err != nil {
		return err
	}
	accessor.SetResourceVersion(version)
	json, err := encode(runtime.ContentTypeJSON, read, gvk)
	if err != nil {
		return err
	}
	return writeParts(out, []byte(r.plural+"."+r.group), stored, json)
}

// writeParts writes each after four bytes of length.
func writeParts(out io.Writer, parts ...[]byte) error {
	for _, part := range parts {
		if err := binary.Write(out, binary.BigEndian, uint32(len(part))); err != nil {
			return err
		}
		if _, err := out.Write(part); err != nil {
			return err
		}
	}
	return nil
}
