package main

import (
	"fmt"
	"math"
	"math/rand"
	"reflect"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// randomObjects makes so many random objects of every cached resource, each with a filler that may
// change it more.
func randomObjects(seedText, countText string, do func(served, schema.GroupVersionKind, filler, runtime.Object) error) error {
	seed, err := strconv.ParseInt(seedText, 10, 64)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(countText)
	if err != nil {
		return err
	}
	for number := range count {
		for _, r := range resources {
			filler := filler{rand.New(rand.NewSource(seed + int64(number)))}
			gvk := schema.GroupVersionKind{Group: r.group, Version: r.version, Kind: r.kind}
			object, err := legacyscheme.Scheme.New(gvk)
			if err != nil {
				return err
			}
			filler.fill(reflect.ValueOf(object).Elem(), 0)
			accessor, err := meta.Accessor(object)
			if err != nil {
				return err
			}
			accessor.SetResourceVersion("")
			// Labels are read as they come in, and are plain text; one is made of a Namespace's name.
			accessor.SetName("name")
			accessor.SetLabels(map[string]string{"app": "web", "x.io/y": ""})
			if err := do(r, gvk, filler, object); err != nil {
				return fmt.Errorf("%s: %w", r.plural, err)
			}
		}
	}
	return nil
}

// filler fills every field that JSON and protobuf know with something random.
type filler struct{ *rand.Rand }

var (
	texts = []string{"", "", "a", "web", "kube-system", "<b>&amp;</b>", "say \"hello\"\\", "line\nline\r\ttab\b\f\v\x00\x1f\x7f",
		"\u2028\u2029\u2027", "ä€😀", "\xff\xc3\xe2\x82 \xed\xa0\x80 \xf0\x9f\x98", "10.0.0.1", "\uFFFD", "a much longer text of more than a hundred and twenty-eight bytes, so that its length takes two bytes in protobuf, whatever they are"}
	quantities = []string{"0", "1", "100m", "1500m", "1Gi", "1.5Gi", "16Mi", "1k", "1e3", "12345678901234567890", "-5", "3n", "0.1", "1E", "1Ei", "9223372036854775807", "1024", "1e-9", "2e30"}
	jsons      = []string{`{}`, `null`, ` { "a" : [ 1 , 2.50e+10 , -0.0 ] , "b" : { } } `, `"<&>"`, "{\"t\":\"\u2028ä\\u00e4\\n\xff\"}", `[true,false,null,[[]]]`, "{\n\t\"f:metadata\": {\"f:labels\": {\".\": {}, \"f:a<b\": {}}}}\n", `0`}
)

func (f filler) choose(from []string) string { return from[f.Intn(len(from))] }

func (f filler) time(step time.Duration) time.Time {
	switch f.Intn(6) {
	case 0:
		return time.Time{}
	case 1:
		return time.Unix(f.Int63n(250_000_000_000)-60_000_000_000, 0)
	case 2:
		return time.Unix(0, 0)
	}
	return time.Unix(1_700_000_000+f.Int63n(1<<28), f.Int63n(1_000_000_000)).Truncate(step)
}

func (f filler) fill(value reflect.Value, depth int) {
	switch to := value.Addr().Interface().(type) {
	case *metav1.TypeMeta:
		return
	case *resource.Quantity:
		*to = resource.MustParse(f.choose(quantities))
		return
	case *metav1.Time:
		to.Time = f.time(time.Second)
		return
	case *metav1.MicroTime:
		to.Time = f.time(time.Microsecond)
		return
	case *intstr.IntOrString:
		*to = intstr.FromInt32(int32(f.Intn(100)))
		if f.Intn(2) == 0 {
			*to = intstr.FromString(f.choose(texts))
		}
		return
	case *runtime.RawExtension:
		if f.Intn(4) > 0 {
			to.Raw = []byte(f.choose(jsons))
		}
		return
	case *metav1.FieldsV1:
		if f.Intn(4) > 0 {
			to.SetRawString(f.choose(jsons))
		}
		return
	}
	// Small things at great depth, so that it ends.
	many := func(most int) int {
		if depth > 9 {
			return 0
		}
		return f.Intn(most)
	}
	switch value.Kind() {
	case reflect.String:
		value.SetString(f.choose(texts))
	case reflect.Bool:
		value.SetBool(f.Intn(2) == 0)
	case reflect.Int32:
		value.SetInt(int64([]int32{0, 1, -1, 8080, math.MaxInt32, math.MinInt32}[f.Intn(6)]))
	case reflect.Int64:
		value.SetInt([]int64{0, 1, -1, 30, math.MaxInt64, math.MinInt64}[f.Intn(6)])
	case reflect.Pointer:
		if many(3) > 0 {
			value.Set(reflect.New(value.Type().Elem()))
			f.fill(value.Elem(), depth+1)
		}
	case reflect.Struct:
		for i := range value.NumField() {
			f.fill(value.Field(i), depth+1)
		}
	case reflect.Slice:
		if value.Type().Elem().Kind() == reflect.Uint8 {
			if f.Intn(3) > 0 {
				bytes := make([]byte, f.Intn(9))
				f.Read(bytes)
				value.SetBytes(bytes)
			}
			return
		}
		length := many(4)
		if length == 0 && f.Intn(2) == 0 {
			return
		}
		value.Set(reflect.MakeSlice(value.Type(), length, length))
		for i := range length {
			f.fill(value.Index(i), depth+1)
		}
	case reflect.Map:
		length := many(5)
		value.Set(reflect.MakeMap(value.Type()))
		for range length {
			key, inner := reflect.New(value.Type().Key()).Elem(), reflect.New(value.Type().Elem()).Elem()
			f.fill(key, depth+1)
			f.fill(inner, depth+1)
			value.SetMapIndex(key, inner)
		}
	default:
		panic(value.Type())
	}
}
