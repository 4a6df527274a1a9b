package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/printers"
	"k8s.io/kubernetes/pkg/printers/internalversion"
	"k8s.io/kubernetes/pkg/printers/storage"
)

// What kube-apiserver uses no printer for, though there may be one: TableConvertor of the storage in
// k8s.io/kubernetes/pkg/registry.
var plain = map[string]bool{"limitranges": true, "roles": true, "clusterroles": true, "csistoragecapacities": true}

// converter makes tables of a resource as kube-apiserver does.
func converter(r served) rest.TableConvertor {
	if plain[r.plural] {
		return rest.NewDefaultTableConvertor(schema.GroupResource{Group: r.group, Resource: r.plural})
	}
	return storage.TableConvertor{TableGenerator: printers.NewTableGenerator().With(internalversion.AddHandlers)}
}

// writeColumns writes the columns of every resource's table as kube-apiserver tells them.
func writeColumns() error {
	fmt.Println("# Written by tests/oracle/kinds from Kubernetes' own printers: group, resource, the columns of its table.")
	for _, r := range resources {
		kind := schema.GroupVersionKind{Group: r.group, Version: runtime.APIVersionInternal, Kind: r.kind + "List"}
		list, err := legacyscheme.Scheme.New(kind)
		if err != nil {
			return err
		}
		table, err := converter(r).ConvertToTable(context.Background(), list, nil)
		if err != nil {
			return err
		}
		columns, err := json.Marshal(table.ColumnDefinitions)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\t%s\n", r.group, r.plural, columns)
	}
	return nil
}

// writeTables writes random objects of every resource: its plural name and group, the stored value,
// the time in nanoseconds, and the row that Kubernetes' own printer makes of it then, with its
// metadata, or nothing where it makes none; each after four bytes of length.
func writeTables(seed, count string) error {
	converters := map[string]rest.TableConvertor{}
	for _, r := range resources {
		converters[r.plural] = converter(r)
	}
	out := bufio.NewWriter(os.Stdout)
	rows := 0
	err := randomObjects(seed, count, func(r served, gvk schema.GroupVersionKind, filler filler, object runtime.Object) error {
		accessor, err := meta.Accessor(object)
		if err != nil {
			return err
		}
		labels := accessor.GetLabels()
		for _, role := range []string{"node-role.kubernetes.io/", "node-role.kubernetes.io/b", "node-role.kubernetes.io/a", "kubernetes.io/role"} {
			if filler.Intn(3) == 0 {
				labels[role] = filler.choose([]string{"", "b", "control-plane"})
			}
		}
		accessor.SetLabels(labels)
		filler.live(object)
		stored, err := encode(runtime.ContentTypeProtobuf, object, gvk)
		if err != nil {
			return err
		}
		stable, _, found := settled(stored, gvk)
		if !found {
			return nil
		}
		internal, err := runtime.Decode(legacyscheme.Codecs.UniversalDecoder(), stable)
		if err != nil {
			return err
		}
		// Not close to the next second, where the printer's clock might be a second ahead.
		for time.Now().Nanosecond() > 900_000_000 {
			time.Sleep(10 * time.Millisecond)
		}
		now := time.Now().UnixNano()
		text, err := row(converters[r.plural], internal)
		if err != nil {
			return err
		}
		if text != nil {
			rows++
		}
		return writeParts(out, []byte(r.plural+"."+r.group), stable, []byte(strconv.FormatInt(now, 10)), text)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d rows\n", rows)
	return out.Flush()
}

// row gives the JSON of an object's row with its metadata, as asTable of
// k8s.io/apiserver/pkg/endpoints/handlers makes it; nothing where the printer refuses it, or panics,
// as it does of what no validation lets pass.
func row(converter rest.TableConvertor, object runtime.Object) (text []byte, err error) {
	defer func() {
		if recover() != nil {
			text, err = nil, nil
		}
	}()
	table, refused := converter.ConvertToTable(context.Background(), object, &metav1.TableOptions{})
	if refused != nil {
		return nil, nil
	}
	row := table.Rows[0]
	accessor, err := meta.Accessor(row.Object.Object)
	if err != nil {
		return nil, err
	}
	accessor.SetResourceVersion(version)
	partial := meta.AsPartialObjectMetadata(accessor)
	partial.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata"))
	row.Object = runtime.RawExtension{Object: partial}
	return json.Marshal(row)
}
