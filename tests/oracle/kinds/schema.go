package main

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// Types with a JSON form of their own, by the letter that the schema has for them.
var special = map[reflect.Type]string{
	reflect.TypeFor[resource.Quantity]():    "q",
	reflect.TypeFor[metav1.Time]():          "t",
	reflect.TypeFor[metav1.MicroTime]():     "u",
	reflect.TypeFor[intstr.IntOrString]():   "o",
	reflect.TypeFor[runtime.RawExtension](): "r",
	reflect.TypeFor[metav1.FieldsV1]():      "f",
}

// Objects within objects to which kube-apiserver gives their kind as it answers
// (k8s.io/kubernetes/pkg/apis/apps/v1/conversion.go).
var kinded = map[string][2]string{"core/v1.PersistentVolumeClaim": {"PersistentVolumeClaim", "v1"}}

// messages are the schema's lines by name.
type messages map[string]string

// writeSchema prints, for every message that a cached resource holds, its fields in the order of
// its JSON: the JSON name, the number in protobuf, the type.
func writeSchema() error {
	found := messages{}
	roots := map[string]bool{}
	types := []reflect.Type{reflect.TypeFor[metav1.PartialObjectMetadata](), reflect.TypeFor[metav1.ListMeta]()}
	for _, r := range resources {
		object, err := legacyscheme.Scheme.New(schema.GroupVersionKind{Group: r.group, Version: r.version, Kind: r.kind})
		if err != nil {
			return err
		}
		types = append(types, reflect.TypeOf(object).Elem())
	}
	for _, of := range types {
		roots[name(of)] = true
	}
	for _, of := range types {
		if err := found.add(of, roots); err != nil {
			return fmt.Errorf("%s: %w", of, err)
		}
	}
	fmt.Println("# Written by tests/oracle/kinds from Kubernetes' own types. A message, then its fields in the order")
	fmt.Println("# of its JSON: name=number:type. s is text, b a bool, i and I numbers of 32 and 64 bits, y bytes,")
	fmt.Println("# q a quantity, t and u times, o a number or text, r and f JSON as it is, c a constant, @ a message;")
	fmt.Println("# * may be missing, [] a list, {} a map by text. ? leaves out what is empty, ! what is zero. Without")
	fmt.Println("# a name the fields of the message stand there themselves.")
	names := make([]string, 0, len(found))
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Println(name + "\t" + found[name])
	}
	return nil
}

// name is the package's last two folders and the type.
func name(of reflect.Type) string {
	parts := strings.Split(of.PkgPath(), "/")
	return strings.Join(parts[max(0, len(parts)-2):], "/") + "." + of.Name()
}

func (m messages) add(of reflect.Type, roots map[string]bool) error {
	if _, done := m[name(of)]; done {
		return nil
	}
	m[name(of)] = ""
	var fields []string
	for i := range of.NumField() {
		field := of.Field(i)
		if field.Type == reflect.TypeFor[metav1.TypeMeta]() {
			if kind, known := kinded[name(of)]; known {
				fields = append(fields, "kind=0:c"+kind[0], "apiVersion=0:c"+kind[1])
			} else if !roots[name(of)] {
				return fmt.Errorf("%s has a kind", of)
			}
			continue
		}
		tag := strings.Split(field.Tag.Get("json"), ",")
		if tag[0] == "-" {
			return fmt.Errorf("%s.%s is not in JSON", of, field.Name)
		}
		inline := tag[0] == "" && field.Anonymous
		if tag[0] == "" && !inline {
			return fmt.Errorf("%s.%s has no JSON name", of, field.Name)
		}
		number, err := strconv.Atoi(strings.Split(field.Tag.Get("protobuf")+",,", ",")[1])
		if err != nil {
			return fmt.Errorf("%s.%s has no number: %w", of, field.Name, err)
		}
		is, err := m.typeOf(field.Type, roots)
		if err != nil {
			return fmt.Errorf("%s.%s: %w", of, field.Name, err)
		}
		if inline && !strings.HasPrefix(is, "@") {
			return fmt.Errorf("%s.%s is inline", of, field.Name)
		}
		text := fmt.Sprintf("%s=%d:%s", tag[0], number, is)
		for _, option := range tag[1:] {
			switch option {
			case "omitempty":
				text += "?"
			case "omitzero":
				if is != "t" {
					return fmt.Errorf("%s.%s: omitzero", of, field.Name)
				}
				text += "!"
			case "inline", "":
			default:
				return fmt.Errorf("%s.%s: %s", of, field.Name, option)
			}
		}
		fields = append(fields, text)
	}
	m[name(of)] = strings.Join(fields, " ")
	return nil
}

func (m messages) typeOf(of reflect.Type, roots map[string]bool) (string, error) {
	if letter, found := special[of]; found {
		return letter, nil
	}
	if of.Kind() == reflect.Pointer {
		inner, err := m.typeOf(of.Elem(), roots)
		if strings.ContainsAny(inner, "*[{") {
			return "", fmt.Errorf("a pointer to %s", inner)
		}
		return "*" + inner, err
	}
	if marshaler := reflect.TypeFor[json.Marshaler](); of.Implements(marshaler) || reflect.PointerTo(of).Implements(marshaler) {
		return "", fmt.Errorf("%s writes its JSON itself", of)
	}
	switch of.Kind() {
	case reflect.String:
		return "s", nil
	case reflect.Bool:
		return "b", nil
	case reflect.Int32:
		return "i", nil
	case reflect.Int64:
		return "I", nil
	case reflect.Struct:
		return "@" + name(of), m.add(of, roots)
	case reflect.Slice:
		if of.Elem().Kind() == reflect.Uint8 {
			return "y", nil
		}
		inner, err := m.typeOf(of.Elem(), roots)
		if strings.ContainsAny(inner, "*[{") || inner == "y" {
			return "", fmt.Errorf("a list of %s", inner)
		}
		return "[]" + inner, err
	case reflect.Map:
		inner, err := m.typeOf(of.Elem(), roots)
		if of.Key().Kind() != reflect.String || strings.ContainsAny(inner, "*[{") {
			return "", fmt.Errorf("a map of %s", inner)
		}
		return "{}" + inner, err
	}
	return "", fmt.Errorf("a %s", of.Kind())
}
