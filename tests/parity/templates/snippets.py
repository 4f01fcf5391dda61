"""Snippets of Jinja for the differential test of the router's template engine: what models' templates use, and
similar constructs. `templates.py` renders each with transformers; the router's test renders them again and compares.
"""

# Variables of every snippet, besides the special tokens.
CONTEXT = {
    "messages": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "<Hi> & \"bye\" 'é' 😀", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"zeta": 1, "alpha": [True, None, 2.5]}}},
        ]},
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
    ],
    "tools": None,
    "documents": None,
    "add_generation_prompt": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "d": {"z": 1, "a": 2, "m": {"y": [1, 2], "b": None}},
    "items_key": {"items": [1, 2], "keys": "k", "get": 5, "type": "array"},
    "nums": [3, 1, 2],
    "words": ["pear", "Apple", "fig", "apple"],
    "people": [{"n": "x", "age": 3, "ok": True}, {"n": "y", "age": 1, "ok": False}, {"n": "z", "age": 3}],
    "s": "Hello, World",
    "text": "line one\nline two\n\n  indented\n",
    "empty": "",
    "nothing": None,
    "t": True,
    "f": False,
    "i": 7,
    "neg": -7,
    "x": 2.5,
    "big": 12345678901234567890,
    "tree": [{"n": "a", "c": [{"n": "b", "c": []}]}, {"n": "d", "c": []}],
    "xs": [],
    "pairs": [["a", 1], ["b", 2]],
}

SNIPPETS = r'''
{{ none is iterable }} {{ tools is iterable and tools | length > 0 }}
{{ undefinedvar is iterable }} {{ s is iterable }} {{ d is iterable }} {{ nums is iterable }} {{ 5 is iterable }}
{{ s is sequence }} {{ d is sequence }} {{ nums is sequence }} {{ none is sequence }} {{ 5 is sequence }} {{ undefinedvar is sequence }}
{{ s is mapping }} {{ d is mapping }} {{ nums is mapping }} {{ none is mapping }} {{ messages[0] is mapping }}
{{ s is string }} {{ d is string }} {{ none is string }} {{ undefinedvar is string }} {{ 5 is string }}
{{ i is number }} {{ x is number }} {{ t is number }} {{ s is number }} {{ none is number }}
{{ i is integer }} {{ x is integer }} {{ t is integer }} {{ i is float }} {{ x is float }} {{ 1.0 is float }}
{{ t is boolean }} {{ i is boolean }} {{ none is boolean }} {{ t is true }} {{ t is false }} {{ f is false }} {{ 1 is true }}
{{ none is none }} {{ undefinedvar is none }} {{ 0 is none }}
{{ undefinedvar is defined }} {{ none is defined }} {{ undefinedvar is undefined }} {{ d.nope is defined }} {{ d.z is defined }}
{{ 4 is even }} {{ 3 is odd }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ neg is odd }}
{{ 'abc' is lower }} {{ 'ABC' is upper }} {{ 'Abc' is lower }} {{ 'a1' is upper }}
{{ 1 is eq 1 }} {{ 1 is equalto 2 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 1 is gt 2 }} {{ 1 is le 1 }} {{ 1 is ge 2 }} {{ 2 is greaterthan 1 }} {{ 1 is lessthan 2 }}
{{ 1 is in [1, 2] }} {{ 'z' is in d }} {{ 'ell' is in s }} {{ 5 is in nums }}
{{ 1 is sameas 1 }} {{ none is sameas none }} {{ t is sameas true }} {{ t is sameas 1 }}
{{ range is callable }} {{ s is callable }} {{ d.items is callable }} {{ raise_exception is callable }}
{{ 'upper' is filter }} {{ 'nope' is filter }} {{ 'defined' is test }} {{ 'nope' is test }}
{{ s is not string }} {{ s is not none }} {{ not s is string }}
{{ s is escaped }} {{ s | escape is escaped }}
{{ 5 is divisibleby 0 }}
{{ s is odd }}
{{ s is nosuchtest }}
{{ items_key.items is defined }} {{ items_key['items'] }} {{ items_key.items is mapping }} {{ items_key.type }}
{{ items_key.items() | list }}
{{ items_key.get('items') }} {{ items_key['get'] }} {{ items_key.keys() | list }}
{{ undefinedvar | length }} {{ undefinedvar | first }}|{{ undefinedvar | last }}|{{ undefinedvar | list }}|{{ undefinedvar | join(',') }}|
{{ undefinedvar | upper }}|{{ undefinedvar | trim }}|{{ undefinedvar | string }}|{{ undefinedvar ~ 'a' }}|{{ undefinedvar | default('d') }}
{{ undefinedvar }}|{{ undefinedvar == undefinedvar }}|{{ undefinedvar == none }}|{{ undefinedvar == '' }}|{{ undefinedvar != 1 }}|{{ not undefinedvar }}
{{ undefinedvar.x }}
{{ undefinedvar['x'] }}
{{ undefinedvar[0] }}
{{ undefinedvar() }}
{{ undefinedvar + 1 }}
{{ undefinedvar + 'a' }}
{{ 'a' + undefinedvar }}
{{ undefinedvar < 1 }}
{{ undefinedvar * 2 }}
{{ -undefinedvar }}
{{ undefinedvar | int }}
{{ undefinedvar | float }}
{{ undefinedvar | tojson }}
{{ undefinedvar | abs }}
{{ undefinedvar | replace('a', 'b') }}|
{{ undefinedvar | sort }} {{ undefinedvar | unique | list }} {{ undefinedvar | map('upper') | list }} {{ undefinedvar | sum }}
{{ undefinedvar | items | list }}
{{ undefinedvar | dictsort }}
{{ 'a' in undefinedvar }} {{ undefinedvar in [1] }}
{{ undefinedvar[1:] }}
{% for c in undefinedvar %}x{% else %}none{% endfor %}
{% for c in none %}x{% else %}none{% endfor %}
{% for c in 5 %}x{% endfor %}
{% for c in true %}x{% endfor %}
{% for c in 'ab' %}{{ c }}{% if not loop.last %},{% endif %}{% endfor %}
{% for c in 'héλ😀' %}{{ loop.index }}/{{ loop.length }}{{ c }}{{ loop.revindex }}{{ loop.revindex0 }} {% endfor %}
{% for c in s %}{{ loop.previtem }}{{ loop.nextitem }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}
{% for k in d %}{{ k }}={{ d[k] }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d | items %}{{ k }}={{ v }};{{ loop.last }}{% endfor %}
{% for k, v in d | dictsort %}{{ k }}={{ v }};{% endfor %}
{% for a, b in pairs %}{{ a }}{{ b }}{% endfor %}
{% for a, b in ['xy', 'zw'] %}{{ a }}-{{ b }} {% endfor %}
{% for a, b in [1, 2] %}{{ a }}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{{ a }}{% endfor %}
{% for a, (b, c) in [[1, [2, 3]]] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for n in nums if n > 1 %}{{ n }}{{ loop.index }}{{ loop.length }}{{ loop.last }} {% else %}no{% endfor %}
{% for n in nums if n > 9 %}{{ n }}{% else %}no{% endfor %}
{% for n in nums %}{{ loop.first }}{{ loop.index0 }}{{ loop.depth }}{{ loop.depth0 }}{{ loop.cycle('a', 'b') }} {% endfor %}
{% for n in [1, 1, 2] %}{{ loop.changed(n) }} {% endfor %}
{% for n in tree recursive %}{{ n.n }}{{ loop.depth }}{% if n.c %}({{ loop(n.c) }}){% endif %}{% endfor %}
{% for n in nums %}{% if n == 1 %}{% continue %}{% endif %}{{ n }}{% endfor %}
{% for n in range(3) %}{% for m in range(2) %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}
{% set a = 1 %}{% for n in nums %}{% set a = n %}{{ a }}{% endfor %}{{ a }}
{% set a = 1 %}{% if true %}{% set a = 2 %}{% endif %}{{ a }}
{% set ns = namespace(a=1) %}{% for n in nums %}{% set ns.a = ns.a + n %}{% endfor %}{{ ns.a }}
{% set ns = namespace() %}{{ ns.nope is defined }}{% set ns.x = [] %}{% set ns.x = ns.x + [1] %}{{ ns.x }}
{% set ns = namespace({'a': 1}, b=2) %}{{ ns.a }}{{ ns.b }}{{ ns['a'] }}
{% set ns = namespace(**{'q': 4}) %}{{ ns.q }}
{% set ns = namespace(a=1) %}{% set ns._b = 1 %}
{% set d.z = 5 %}
{% set ns = namespace(a=1) %}{% macro m() %}{% set ns.a = 5 %}{% endmacro %}{{ m() }}{{ ns.a }}
{% set ns = namespace(a=1) %}{% generation %}{% set ns.a = 5 %}{% endgeneration %}{{ ns.a }}
{% set ns = namespace(a=1) %}{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% set ns.a = 5 %}{% endcall %}{{ ns.a }}
{% set a, b = [1, 2] %}{{ a }}{{ b }}
{% set a, b = 'xy' %}{{ a }}{{ b }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}
{% set a = (1, 2) %}{{ a }}{{ a[0] }}
{% set a = (1,) %}{{ a }} {{ () }}
{% set a %}x{{ i }}y{% endset %}[{{ a }}]{{ a | length }}
{% set a | upper %}x{{ s }}{% endset %}{{ a }}
{% set a | upper | replace('X', 'z') %}x{{ s }}{% endset %}{{ a }}
{% filter upper %}a{{ s }}{% endfilter %}
{% filter replace('a', 'b') | upper %}aXa{% endfilter %}
{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}
{% set a = 5 %}{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}
{% macro m(a, b='B') %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(q=2) }}
{% macro m(n) %}{{ n }}{% if n > 0 %}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(3) }}
{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}inside {{ s }}{% endcall %}
{% macro m() %}{{ caller('u') }}!{% endmacro %}{% call(who) m() %}inside {{ who }}{% endcall %}
{% macro m() %}{{ later }}{% endmacro %}{% set later = 3 %}{{ m() }}
{% macro m(x) %}{% set y = x %}{{ y }}{% endmacro %}{{ m(1) }}{{ y is defined }}
{% macro m(x) %}  a {{ x }}  {% endmacro %}[{{ m(1) | trim }}]{{ m(2) | length }}
{% macro m(x=[]) %}{{ x }}{% endmacro %}{{ m() }}{{ m([1]) }}
{% macro render(m) -%}{{ m.role }}:{{ m.content }}{%- endmacro %}{% for m in messages %}{{ render(m) }};{% endfor %}
{{ m.name }}{% macro m(a) %}{% endmacro %}{{ m.name }} {{ m.arguments }}
{% generation %}x{{ i }}{% endgeneration %}
{%- generation -%}  x {%- endgeneration -%}  y
{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}
{% if messages %}A{% elif s %}B{% else %}C{% endif %}{% if xs %}A{% elif empty %}B{% else %}C{% endif %}
{% if 0.0 %}a{% endif %}{% if '0' %}b{% endif %}{% if [] %}c{% endif %}{% if {} %}d{% endif %}{% if ' ' %}e{% endif %}{% if none %}f{% endif %}
{% if people | selectattr('age', 'equalto', 99) %}truthy{% else %}falsy{% endif %}
{% if people | selectattr('age', 'equalto', 99) | list %}truthy{% else %}falsy{% endif %}
{% if nums | map('string') %}t{% endif %}{% if [] | map('string') %}t{% endif %}{% if [] | reverse %}t{% endif %}
{% if d.items() %}a{% endif %}{% if {}.items() %}b{% endif %}{% if range(0) %}c{% endif %}{% if range(1) %}d{% endif %}
{{ 'a' if t }}{{ 'b' if f }}{{ 'c' if f else 'd' }}{{ ('e' if f) is defined }}
{{ t and 'x' }}{{ f or 'y' }}{{ none or 0 or 'z' }}{{ s and i }}{{ '' and 1 }}|{{ not t }}{{ not '' }}
{{ 1 + 2 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2.0 ** 3 }}
{{ 7.5 // 2 }} {{ 7.5 % 2 }} {{ -7.5 // 2 }} {{ 1.5 + 1 }} {{ 3 * 1.5 }} {{ 1 - 0.5 }} {{ 10 / 4 }} {{ 1e3 }} {{ 0.1 + 0.2 }}
{{ t + 1 }} {{ t * 3 }} {{ t + t }} {{ f - 1 }} {{ -t }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1 % 0 }}
{{ 1e20 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789012345678.0 }} {{ 1e-5 }} {{ 0.0001 }} {{ 1.0 }} {{ 100.0 }} {{ 1e100 }} {{ 1.5e-10 }} {{ -0.0 }}
{{ 1_000 }} {{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 1_0.5 }}
{{ big }} {{ big + 1 }} {{ 18446744073709551615 }} {{ 9223372036854775807 + 1 }} {{ 2 ** 100 }}
{{ 'a' + 'b' }} {{ 'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1] }} {{ [1] + [2] }} {{ (1,) + (2,) }} {{ [1] * 2 }} {{ 'ab' * 2 }} {{ 2 * 'ab' }} {{ 'x' * -1 }}|{{ 'x' * 0 }}| {{ [1] * 0 }}
{{ 'a' + 1 }}
{{ 1 + 'a' }}
{{ [1] + 'a' }}
{{ [1] + (2,) }}
{{ none + 1 }}
{{ 'a' - 'b' }}
{{ 'a' * 'b' }}
{{ 'a' * 1.5 }}
{{ {} + {} }}
{{ -'a' }}
{{ +3 }} {{ -3 | abs }} {{ -2 ** 2 }} {{ (-3) | abs }}
{{ 2 ** 3 ** 2 }} {{ 1 - 1 - 1 }} {{ 2 * 3 % 4 }} {{ 10 - 2 * 3 }} {{ 'a' ~ 1 + 2 }} {{ 1 + 2 ~ 'a' }}
{{ '%s' % 'x' }} {{ '%s-%s' % (1, 2) }} {{ '%d' % 3.7 }} {{ '%05d' % 42 }} {{ '%.2f' % 3.14159 }} {{ '%x' % 255 }} {{ '%%' % () }} {{ '%5s|%-5s|' % ('a', 'b') }} {{ '%r' % 'x' }} {{ '%s' % [1, 'a'] }} {{ '%s' % none }} {{ '%(a)s' % {'a': 1} }} {{ '%e' % 12345.678 }} {{ '%g' % 0.0001 }} {{ '%c' % 'x' }} {{ '%+d' % 5 }} {{ '%i' % 3 }} {{ '%o' % 8 }} {{ '%#x' % 255 }} {{ '%G' % 1e20 }}
{{ '%s %s' % 'x' }}
{{ '%s' % (1, 2) }}
{{ '%d' % 'x' }}
{{ '%s!' % messages[0].role }}
{{ '%s %s' | format('a', 1) }} {{ '%(x)s' | format(x=2) }}
{{ '{} {}'.format(1, 'a') }} {{ '{0}{1}{0}'.format('a', 'b') }} {{ '{x}'.format(x=1) }} {{ '{:>5}|{:<5}|{:^5}|'.format('a', 'b', 'c') }} {{ '{:.2f}'.format(3.14159) }} {{ '{:,}'.format(1234567) }} {{ '{:05d}'.format(42) }} {{ '{!r}'.format('a') }} {{ '{:x}'.format(255) }} {{ '{:*^9}'.format('mid') }} {{ '{0[a]}'.format({'a': 1}) }}
{{ '{} {}'.format(1) }}
{{ '{{}}'.format() }}{{ '{{{}}}'.format(1) }}
{{ '{:%}'.format(0.25) }}
{{ '{'.format() }}
{{ '}'.format() }}
{{ '{:d}'.format('a') }}
{{ '{!r:>5}'.format('a') }} {{ '{:{}}'.format('a', 3) }} {{ '{0[1]}'.format([1, 2]) }} {{ '{}'.format(none) }} {{ '{}'.format(1e20) }} {{ '{}'.format([1, 'a']) }} {{ '{:s}'.format('a') }}
{{ 1 == 1.0 }} {{ 1 == true }} {{ 'a' == 'a' }} {{ [1, 2] == [1, 2] }} {{ [1] == (1,) }} {{ {'a': 1} == {'a': 1} }} {{ {'a': 1, 'b': 2} == {'b': 2, 'a': 1} }} {{ none == none }} {{ none == false }} {{ '1' == 1 }} {{ 0 == false }} {{ '' == none }}
{{ 1 < 2 }} {{ 1 < 2 < 3 }} {{ 3 > 2 > 2 }} {{ 'a' < 'b' }} {{ 'B' < 'a' }} {{ [1, 2] < [1, 3] }} {{ 1 <= 1.0 }} {{ true < 2 }} {{ (1, 2) < (1, 2, 0) }} {{ 1 != 2 }} {{ 'é' > 'z' }}
{{ 1 < 'a' }}
{{ none < 1 }}
{{ [] < {} }}
{{ {} < {} }}
{{ 'a' in 'abc' }} {{ 'x' not in 'abc' }} {{ '' in 'abc' }} {{ 1 in [1, 2] }} {{ 1.0 in [1] }} {{ 'z' in d }} {{ 1 in d }} {{ 'a' in ['a'] }} {{ none in [none] }} {{ 'a' in ('a', 'b') }} {{ 1 in range(3) }}
{{ 1 in 'abc' }}
{{ 'a' in none }}
{{ 'a' in 5 }}
{{ [] in d }}
{{ s[0] }} {{ s[-1] }} {{ s[100] }}|{{ s[1:3] }} {{ s[:-1] }} {{ s[::-1] }} {{ s[::2] }} {{ s[-3:] }} {{ s[5:2] }}|{{ s[10:100] }} {{ s[-100:2] }} {{ s['x'] }}|{{ s[2:-2:3] }} {{ s[-2:2:-3] }} {{ s[100::-5] }}
{{ nums[0] }} {{ nums[-1] }} {{ nums[5] }}|{{ nums[1:] }} {{ nums[::-1] }} {{ nums[:-1] }} {{ nums[-2:] }} {{ nums[5:] }} {{ nums[2:0:-1] }} {{ nums[:] }} {{ nums['x'] }}|{{ nums[none:2] }} {{ nums[::-2] }} {{ nums[-1:0:-1] }} {{ nums[1::-1] }}
{{ (1, 2, 3)[1:] }} {{ (1, 2, 3)[::-1] }} {{ 'héλ😀'[1:3] }} {{ 'héλ😀'[::-1] }} {{ 'héλ😀'[-1] }}
{{ nums[::0] }}
{{ none[1:] }}|
{{ d[1:] }}
{{ 5[0] }}|{{ none[0] }}|{{ none.x }}|{{ none['x'] }}|{{ 5.x }}
{{ d.z }} {{ d['z'] }} {{ d.m.y[0] }} {{ d.nope }}|{{ d['nope'] }}|{{ d[0] }}|{{ d.m['y'][1] }} {{ pairs.0.1 }} {{ d.get('z') }} {{ d.get('q') }} {{ d.get('q', 5) }}
{{ d.nope.deeper }}
{{ d['nope']['deeper'] }}
{{ d[[]] }}|
{{ messages[0].role.upper() }} {{ messages[-1]['content'] }} {{ messages[1:][0].role }} {{ messages[:2] | length }} {{ messages | length }} {{ messages[9] is defined }}
{{ d }} {{ messages[2] }} {{ nums }} {{ words }} {{ ['a', 1, 1.5, none, true, "it's", 'q"q', "both'\"", 'n\nl', 'é😀', '\x00\x7f\x80', '\\'] }}
{{ (1, 'a') }} {{ {'a': (1,), 2: [], none: {}} }} {{ [[]] }} {{ {} }} {{ [undefinedvar] }}
{{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d.keys() }} {{ d.values() }} {{ d.items() }} {{ d | list }} {{ d | length }} {{ d.items() | length }}
{{ d.items()[0] }}|
{{ d.copy() }} {{ d.get('a', 'b') }}
{{ d.pop('a') }}
{{ d.update({'q': 1}) }}
{{ nums.append(1) }}
{{ nums.pop() }}
{{ nums.index(2) }} {{ nums.count(3) }}
{{ nums.index(9) }}
{{ nums.nope() }}
{{ s.nope() }}
{{ none.nope() }}
{{ 5.bit_length() }}
{{ x.is_integer() }}
{{ nope() }}
{{ s() }}
{{ s.upper }}|
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ s.capitalize() }} {{ s.swapcase() }} {{ 'straße ǆ ﬁ'.upper() }} {{ 'İ'.lower() | length }} {{ 'they\'re bill\'s'.title() }} {{ 'ß'.casefold() }} {{ 'ΑΣ'.lower() }}
[{{ '  a '.strip() }}] [{{ '  a '.lstrip() }}] [{{ '  a '.rstrip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ 'abcba'.strip('ab') }}] [{{ 'xa'.lstrip('x') }}] [{{ 'ax\n'.rstrip('\n') }}] [{{ ' a '.strip(none) }}] [{{ '\u00a0\x1c a\u2003'.strip() }}] [{{ '​a'.strip() | length }}]
{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a b c'.split(' ', 1) }} {{ 'a b c'.split(maxsplit=1) }} {{ 'a'.split('x') }} {{ ''.split() }} {{ ''.split(',') }} {{ 'abc'.split('b', -1) }} {{ 'a<t>b<t>c'.split('<t>') }} {{ 'a b  c '.split(none, 1) }}
{{ 'a,b,c'.rsplit(',', 1) }} {{ 'a b c'.rsplit() }} {{ 'a b c'.rsplit(maxsplit=1) }} {{ 'abc'.rsplit('x') }} {{ ' a b  c '.rsplit(none, 1) }}
{{ 'a'.split('') }}
{{ 'a=b=c'.partition('=') }} {{ 'a=b=c'.rpartition('=') }} {{ 'abc'.partition('=') }} {{ 'abc'.rpartition('=') }} {{ 'a=b'.partition('=')[2] }}
{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }} {{ 'aab'.replace('a', 'x') }} {{ 'aab'.replace('a', 'x', 1) }} {{ 'abc'.replace('', '-') }} {{ 'abc'.replace('', '-', 2) }} {{ 'aaa'.replace('aa', 'b') }}
{{ 'abc'.startswith('a') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.endswith('c') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('b', 1) }} {{ 'abc'.endswith('b', 0, 2) }} {{ 'abc'.startswith('') }} {{ 'abc'.startswith('', 9) }}
{{ 'abc'.startswith(1) }}
{{ 'abc'.startswith(['a']) }}
{{ 'abcabc'.find('c') }} {{ 'abc'.find('x') }} {{ 'abcabc'.rfind('c') }} {{ 'héllo'.find('l') }} {{ 'abc'.find('') }} {{ 'abc'.find('c', 1) }} {{ 'abc'.find('a', 1) }} {{ 'abcabc'.count('bc') }} {{ 'aaa'.count('aa') }} {{ 'abc'.count('') }} {{ 'abc'.index('b') }} {{ 'abc'.rindex('c') }}
{{ 'abc'.index('x') }}
{{ '42'.zfill(5) }} {{ '-42'.zfill(5) }} {{ '+4'.zfill(4) }} {{ 'abc'.ljust(5) }}| {{ 'abc'.rjust(5) }}| {{ 'abc'.center(6) }}| {{ 'abc'.center(8, '*') }}| {{ 'abc'.ljust(5, '.') }} {{ 'ab'.center(5) }}| {{ 'é'.zfill(3) }} {{ 'abcd'.center(7, '-') }}
{{ 'abc'.isalpha() }} {{ 'a1'.isalnum() }} {{ '12'.isdigit() }} {{ '²'.isdigit() }} {{ '½'.isnumeric() }} {{ '12'.isdecimal() }} {{ ' '.isspace() }} {{ ''.isspace() }} {{ 'Ab'.istitle() }} {{ 'abc'.islower() }} {{ 'ABC'.isupper() }} {{ '1'.isupper() }} {{ 'a_b'.isidentifier() }} {{ 'é'.isascii() }} {{ ''.isascii() }} {{ 'é'.isalpha() }} {{ 'a b'.isprintable() }} {{ ''.isdigit() }}
{{ ','.join(['a', 'b']) }} {{ ''.join('abc') }} {{ ', '.join(d) }} {{ '-'.join(nums | map('string')) }}
{{ ','.join([1, 2]) }}
{{ 'a\nb\r\nc'.splitlines() }} {{ 'a\n'.splitlines(true) }} {{ ''.splitlines() }} {{ 'a\n\nb'.splitlines() }} {{ text.splitlines() }}
{{ 'a\tb'.expandtabs(4) }} {{ 'abc'.translate({97: 'x'}) }}
{{ 'abc'.encode() }}
{{ s | upper }} {{ s | lower }} {{ s | capitalize }} {{ 'hello big-world foo(bar' | title }} {{ "it's" | title }} {{ s | length }} {{ s | count }} {{ s | first }} {{ s | last }} {{ s | reverse }} {{ s | list }} {{ 5 | upper }} {{ none | upper }}
[{{ '  a ' | trim }}] [{{ 'xax' | trim('x') }}] [{{ 5 | trim }}] [{{ text | trim }}] [{{ none | trim }}]
{{ 'aab' | replace('a', 'x') }} {{ 'aab' | replace('a', 'x', 1) }} {{ 'aab' | replace('a', 'x', count=1) }} {{ 5 | replace('5', '6') }} {{ 'a.b' | replace('.', '') }} {{ 'ab' | replace('', '-') }}
{{ 'aab' | replace('a', 1) }}
{{ nums | first }} {{ nums | last }} {{ xs | first }}|{{ xs | last }}| {{ nums | length }} {{ nums | sum }} {{ nums | min }} {{ nums | max }} {{ xs | min }}| {{ nums | sort }} {{ nums | sort(reverse=true) }} {{ nums | reverse | list }} {{ nums | join }} {{ nums | join('-') }} {{ nums | list }}
{{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ words | unique | list }} {{ words | unique(case_sensitive=true) | list }} {{ words | min }} {{ words | max }} {{ words | join(', ') }} {{ words | map('upper') | list }} {{ words | map('length') | list }} {{ words | map('replace', 'p', 'q') | list }}
{{ people | map(attribute='n') | list }} {{ people | map(attribute='ok', default='?') | list }} {{ people | selectattr('ok') | map(attribute='n') | join }} {{ people | rejectattr('ok') | map(attribute='n') | join }} {{ people | selectattr('age', 'equalto', 3) | list | length }} {{ people | selectattr('ok', 'defined') | list | length }} {{ people | rejectattr('age', '==', 3) | list }} {{ people | sort(attribute='age') | map(attribute='n') | join }} {{ people | sort(attribute='age,n', reverse=true) | map(attribute='n') | join }} {{ people | sum(attribute='age') }} {{ people | join(',', attribute='n') }} {{ people | max(attribute='age') }} {{ people | min(attribute='age') }}
{{ nums | select('odd') | list }} {{ nums | reject('odd') | list }} {{ nums | select('>', 1) | list }} {{ [0, 1, '', 'a', none] | select | list }} {{ [0, 1] | reject | list }} {{ nums | select('in', [1, 2]) | list }} {{ nums | map('string') | list }} {{ ['1', 'x'] | map('int') | list }}
{{ people | groupby('age') }} {% for k, g in people | groupby('age') %}{{ k }}:{{ g | map(attribute='n') | join }} {% endfor %}{% for g in people | groupby('age') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}
{{ [1, 2, 3, 4, 5] | batch(2) | list }} {{ [1, 2, 3] | batch(2, 'x') | list }} {{ [1, 2, 3, 4, 5] | slice(2) | list }} {{ [1, 2, 3] | slice(2, 'x') | list }}
{{ nums | map('upper') }}
{{ nums | map('nosuchfilter') | list }}
{{ s | nosuchfilter }}
{{ people | selectattr('n', 'nosuchtest') | list }}
{{ nums | map('string') | length }}
{{ nums | select('odd') | first }} {{ (nums | map('string') | list)[0] }} {{ nums | reverse | first }} {{ nums | unique | first }}
{{ (nums | map('string'))[0] }}|
{{ [1, 'a'] | sort }}
{{ [none, 1] | sort }}
{{ [1, 'a'] | sum }}
{{ 5 | length }}
{{ none | length }}
{{ 5 | first }}
{{ none | first }}
{{ none | list }}
{{ 5 | join }}
{{ none | join(',') }}
{{ none | default('x') }} {{ none | default('x', true) }} {{ '' | default('x', true) }} {{ '' | default('x') }}| {{ undefinedvar | default }}| {{ undefinedvar | d('q') }} {{ d.nope | default(5) }} {{ none | default('x', boolean=true) }} {{ 0 | default(1) }} {{ f | default('y', true) }}
{{ '5' | int }} {{ 'x' | int }} {{ '5.7' | int }} {{ 5.7 | int }} {{ ' 12 ' | int }} {{ 'x' | int(9) }} {{ '0x1F' | int(0, 16) }} {{ '1_000' | int }} {{ true | int }} {{ none | int }} {{ '-3' | int }} {{ '1e3' | int }} {{ '' | int }} {{ 'ff' | int(base=16) }} {{ [] | int }} {{ '0b11' | int(base=2) }} {{ '٣' | int }}
{{ '5' | float }} {{ 'x' | float }} {{ '1e3' | float }} {{ 5 | float }} {{ 'inf' | float }} {{ 'nan' | float }} {{ ' 1.5 ' | float }} {{ 'x' | float(1.5) }} {{ none | float }} {{ '1_0.5' | float }} {{ '.5' | float }} {{ '5.' | float }} {{ true | float }}
{{ 2.5 | round }} {{ 3.5 | round }} {{ 2.567 | round(2) }} {{ 2.561 | round(2, 'ceil') }} {{ 2.569 | round(2, 'floor') }} {{ 42 | round }} {{ 1234 | round(-2) }} {{ -2.5 | round }} {{ 2.675 | round(2) }} {{ 2.5 | round | int }}
{{ -5 | abs }} {{ neg | abs }} {{ -2.5 | abs }} {{ true | abs }}
{{ 's' | abs }}
{{ 5 | string }} {{ none | string }} {{ [1, 'a'] | string }} {{ true | string | length }} {{ 1e20 | string }} {{ d | string | length }}
{{ '<a href="x">&\'' | escape }} {{ '<' | e }} {{ '<' | safe }} {{ 5 | e }}
{{ 'a\nb\n\nc' | indent }}| {{ 'a\nb' | indent(2) }} {{ 'a\nb' | indent(2, true) }} {{ 'a\n\nb' | indent(2, blank=true) }} {{ 'a\nb' | indent('--') }} {{ text | indent(2) }}
{{ 'abc' | center(9) }}| {{ 'a b  c' | wordcount }} {{ 'hello big world' | truncate(9) }} {{ 'hello big world' | truncate(9, true) }} {{ 'hello big world' | truncate(9, true, '') }} {{ 'short' | truncate(9) }}
{{ d | dictsort }} {{ d | dictsort(reverse=true) }} {{ {'b': 1, 'A': 2} | dictsort }} {{ {'b': 1, 'A': 2} | dictsort(true) }} {{ {'b': 1, 'a': 2} | dictsort(by='value') }}
{{ d | attr('z') }}| {{ s | attr('upper') is defined }} {{ {'a': 1} | attr('a') }}|
{{ d | items | list }} {{ none | items | list }}
{{ d | tojson }} {{ nums | tojson }} {{ s | tojson }} {{ none | tojson }} {{ true | tojson }} {{ 1.0 | tojson }} {{ 1e20 | tojson }} {{ 1e-7 | tojson }} {{ (1, 2) | tojson }} {{ '<&>\'"' | tojson }} {{ 'é😀\n\t\x00\x1f\x7f\\/' | tojson }} {{ {1: 2, none: 3, true: 4, 1.5: 5} | tojson }}
{{ messages | tojson }} {{ messages[2].tool_calls | tojson }}
{{ 'é😀\x7f' | tojson(ensure_ascii=true) }} {{ d | tojson(separators=(',', ':')) }} {{ d | tojson(sort_keys=true) }} {{ d | tojson(indent=2) }} {{ d | tojson(indent=0) }} {{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ d | tojson(indent='--') }} {{ d | tojson(indent=2, separators=(',', ': ')) }} {{ [1, [2, {}]] | tojson(indent=4) }} {{ {'b': {'d': 1, 'c': 2}, 'a': 1} | tojson(sort_keys=true, ensure_ascii=false) }} {{ d | tojson(true) }} {{ d | tojson(false, 2) }} {{ nums | tojson(separators=(', ', ': '), indent=none) }}
{{ {1: 1, 'a': 2} | tojson(sort_keys=true) }}
{{ d.items() | tojson }}
{{ nums | map('string') | tojson }}
{{ range | tojson }}
{{ ('nan' | float) | tojson }} {{ ('inf' | float) | tojson }} {{ 'nan' | float }} {{ -('inf' | float) }}
{{ '\u00e9\x41\101\n\t\\\'\"\a\b\f\v\/\d' }} {{ "a\"b" }} {{ 'a' 'b' }}
{{ '\U0001F600' }} {{ '\u2028' | length }} {{ '\0' | length }} {{ '\08' | length }} {{ '\400' }}
{{ '\x4' }}
{{ '\u12' }}
{{ '\U00110000' }}
{{ '\é' }} {{ '\\é' }}
{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }} {{ range(3) }} {{ range(1, 7, 2) }} {{ range(3) | length }} {{ range(3)[1] }} {{ range(10)[2:5] | list }} {{ range(3) | last }}
{{ range(100001) | length }}
{{ range('a') }}
{{ range(1, 2, 0) }}
{{ range(1.5) }}
{{ dict(a=1, b=2) }} {{ dict({'a': 1}, b=2) }} {{ dict([['a', 1]]) }} {{ dict() }}
{{ {'a': 1, 'a': 2} }} {{ {1: 'a', 1.0: 'b'} }} {{ {**d} if false else 1 }}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner(', ') %}{% for n in nums %}{{ j() }}{{ n }}{% endfor %}
{{ raise_exception('no: ' ~ s) }}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% if messages[0].role != 'user' %}{{ raise_exception("first must be user, not '" + messages[0]['role'] + "'") }}{% endif %}
{{ raise_exception(5) }}
{{ raise_exception() }}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{% do nums %}
{% nosuchtag %}
{% if %}
{{ a b }}
{{ 1 +
{% for x in nums %}
{{ s }
{{ 'unterminated }}
{{ loop }}
{{ namespace }}x
{{ self }}x
{% block b %}in{{ s }}{% endblock %} {{ self.b() }}
{% raw %}{{ x }}{% if %}{% endraw %}|{%- raw -%}  {{ y }}  {%- endraw -%} |
{# comment #}a{#- b -#}  c  {#- d #}
a   {%- if true -%}   b   {%- endif -%}   c
a {{- ' x ' -}} b
{{ "{{ not }}" }} {{ '%}' }} {{ '}}' }} {{ {'a': {'b': 1}} }} {{ {'a':{'b':1}}['a'] }}
{{ strftime_now('%Y-%m-%d') }} {{ strftime_now('%d %b %Y') }} {{ strftime_now('%B %d, %Y') }} {{ strftime_now('%A %a %j %U %W %w %u %V %G') }} {{ strftime_now('%H:%M:%S %I %p %y %C') }} {{ strftime_now('%x') }} {{ strftime_now('%X') }} {{ strftime_now('%c') }} {{ strftime_now('%-d/%-m') }} {{ strftime_now('%e|%k|%l|%D|%F|%T|%R|%r|%h|%n|%t|%%') }} {{ strftime_now('%z|%Z|%f') }} {{ strftime_now('%s') | length > 5 }} {{ strftime_now('') }} {{ strftime_now('é%Y') }} {{ strftime_now('%_d %^a %#Z %P %5Y %-I') }}
{{ strftime_now('%Q') }}|{{ strftime_now('%') }}
{{ strftime_now(5) }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list | last }}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | map(attribute='name', default='-') | join }} {{ (messages | last).role }} {{ messages | rejectattr('tool_calls', 'defined') | list | length }}
{% for m in messages %}{{ m.get('name', '?') }}{{ 'tool_calls' in m }}{{ m.tool_calls is defined and m.tool_calls }}{{ m.content | length }}{% endfor %}
{% for k, v in messages[2].tool_calls[0].function.arguments.items() %}<{{ k }}>{{ v if v is string else v | tojson }}</{{ k }}>{% endfor %}
{% for a in messages[2].tool_calls[0].function.arguments | dictsort %}{{ a[0] }}={{ a[1] | string }};{% endfor %}
{% set ns = namespace(found=false) %}{% for m in messages[::-1] %}{% if not ns.found and m.role == 'assistant' %}{% set ns.found = true %}{{ loop.index0 }}{% endif %}{% endfor %}
{% set content = 'a</think>\n\nb' %}{{ content.split('</think>')[-1].lstrip('\n') }}|{{ content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') }}
{% set loop_messages = messages[1:] %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ message.role }}{% endfor %}
{{ messages[1].content | trim + '!' }} {{ (messages[1].content | trim) + '!' }} {{ '[' + messages[0].content | trim + ']' }}
{{ t }} {{ f }} {{ none }} {{ None }} {{ True }} {{ False }} {{ true and none }}
{{ i | string ~ 'x' }} {{ i ~ '' }} {{ '%03d' | format(i) }} {{ (i / 2) | int }} {{ (i / 2) | round(1) }} {{ i // 2 * 2 == i }}
{{ loop is defined }} {{ caller is defined }} {{ varargs is defined }}
{{ lipsum is defined }} {{ dict is defined }} {{ namespace is defined }} {{ cycler is defined }} {{ strftime_now is defined }} {{ open is defined }}
{{ s.__class__ }}
{{ ''.__class__.__mro__ }}
{{ d.__len__() }}
{{ [] is sequence }} {{ (1, 2) is sequence }} {{ range(2) is sequence }} {{ d.items() is sequence }} {{ nums | map('string') is sequence }} {{ nums | map('string') is iterable }} {{ d.keys() is iterable }} {{ d.items() is mapping }}
{{ x | int + 1 }} {{ 5 | float / 2 }} {{ '5' | int * 2 }}
{{ (s is string) if t else 2 }} {% for _item in nums if (_item is odd) %}{{ _item }}{% endfor %} {{ (1 is defined) in [true] }}
{% for n in tree if (n is mapping) recursive %}{{ n.n }}{{ loop(n.c) }}{% endfor %}
{{ ((s)) is string and (not (t is none)) or (nums is mapping) }} {{ (i if t else x) is number }} {{ (s | upper).lower() }} {{ (s is string) | string }}
{{ -(i) }} {{ -(i) | abs }} {{ (-i) ** 2 }} {{ not (not t) }} {{ (not t) == f }} {{ (t and f) == f }} {{ t and (f or t) }} {{ (t or f) and f }}
{{ (1 if t else 2) if f else (3 if f else 4) }} {{ [1 if t else 2, (3, 4)] }} {{ {'a': 1 if t else 2}['a'] }} {{ (nums if t else xs)[0] }} {{ ('a' ~ 'b').upper() }} {{ (1 + 2) * (3 - 4) - (5 - 6) }} {{ 2 - (3 - (4 - 5)) }} {{ (2 ** 3) ** 2 }} {{ 'a' ~ ('b' ~ ('c' ~ 'd')) }} {{ 7 // (2 * 3) }} {{ (1 < 2) == true }} {{ 1 == 1 == 1 }} {{ 1 < 3 > 2 }} {{ not 1 in [2] }} {{ 1 not in [2] == true }}
{{ 1 if true else 2 if false else 3 }} {{ (1 if f else 2) + 1 }} {{ 'a' if i > 5 and i < 10 else 'b' }} {{ not i == 7 }} {{ not (i == 7 and t) }}
{{ [1, 2, 3] | map('multiply', 2) | list }}
{{ {'a': undefinedvar} | tojson }}
{{ nums | sort | first }} {{ nums | sort(attribute='x') }}
{{ '' | first }}|{{ '' | last }}|{{ '' | length }}|{{ '' | list }}
{% for i in range(3) %}{% if i == 1 %}{% set s = 'in' %}{% endif %}{{ s }}{% endfor %}{{ s }}
{% for x in [1, 2] %}{% endfor %}{{ x }}
{% for message in messages %}{% set content = message.content %}{{ content }}{% endfor %}{{ content is defined }}
{% set x = namespace(n=0) %}{% macro inc() %}{% set x.n = x.n + 1 %}{% endmacro %}{{ inc() }}{{ inc() }}{{ x.n }}
{{ 'abc' | batch(2) | list }} {{ 'abc' | unique | list }} {{ 'hello' | unique | join }} {{ 'cab' | sort }} {{ 'cab' | max }}
{{ d.z.real }} {{ (5).real }}|{{ s.real }}
{{ words | map('first') | list }} {{ pairs | map('last') | list }} {{ pairs | map(attribute=0) | list }} {{ pairs | map(attribute='0') | list }} {{ people | map(attribute='n.upper') | list | length }}
{{ nums is iterable and nums is not mapping and nums is not string }} {{ messages[1].content is string and messages[1].content is not mapping }}
{{ messages[2].content or 'fallback' }} {{ messages[2].tool_calls[0]['function']['name'] }} {{ messages[2].tool_calls[0].function.arguments | tojson }} {{ messages[2]['tool_calls'] | length }}
{{ 'x' ~ (none or '') }} {{ 'x' + (undefinedvar or '') }} {{ (undefinedvar or none) is none }}
{{ [1, 2, 3][undefinedvar] }}|{{ d[undefinedvar] }}|{{ d[none] }}
{{ [[1, 2], [3]] | sum(start=[]) }} {{ nums | sum(start=10) }} {{ [1.5, 2] | sum }} {{ [] | sum }}
{{ 3 | pprint }} {{ 'a' | forceescape }} {{ 'a b&c' | urlencode }} {{ {'a': 1} | urlencode }} {{ 1024 | filesizeformat }} {{ '<b>x</b>' | striptags }} {{ 'a b c d' | wordwrap(3) }} {{ {'a': 1} | xmlattr }}
'''

# These contain line ends, which the list above cannot.
MULTILINE = [
    "  {% if true %}\n  x\n  {% endif %}\ny\n  {{ s }}\n  {# c #}\nz\n",
    "{% if true -%}\n\n  x\n\n{%- endif %}\na\n",
    "    {%+ if true %}b{% endif +%}\nc\n",
    "    {%+ if true +%}\n b{% endif %}\nc\n\n",
    "a{% if true %}\n\nb{% endif %}\n\n{% for n in nums %}\n- {{ n }}\n{% endfor %}\nend",
    "\t{% set a = 1 %}\t\ntab\n",
    "a  {% if true %}  b  {% endif %}  c\n{{ s }}  {% if true %}\nx{% endif %}\nline\n\n{{ '' }}\n\n{%- set x = 1 %}  z\n",
    "{% set x = 'a\nb' %}{{ x }}|",
    "{{ 'a\\\nb' }}",
    "A\r\n{% for m in messages %}\r\n{{ m.role }}{% endfor %}\r\n",
    "A\rB\r\nC\n\r\n{% set x = 'p\r\nq' %}\r\n{{ x }}{{ x | length }}",
    "x\n", "x\n\n", "\n", "", "\n\nx", "  \n", "x\r\n", "x\r",
    "{#- a -#}\n\n  b\n{# c #}\n\nd",
    "{# multi\nline #}\nx",
    "{%\n  set x = [\n    1,\n    2,\n  ]\n%}\n{{ x\n}}",
    "{{ d\n   .z\n   | string\n   ~ 'x' }}",
    "{% raw %}\n{{ x }}\n{% endraw %}\ny",
    "  {% raw -%}\n  {{ x }}\n  {%- endraw %}\ny",
    "{% for n in nums -%}\n  {{ n }}\n{%- endfor %}\n",
    "{%- for n in nums %}\n    {%- if n > 1 %}\n        {{- '<' + n | string + '>' }}\n    {%- else %}\n        {{- '\\n' }}\n    {%- endif %}\n{%- endfor %}\n",
    "{% macro m(a) %}\n  {{ a }}\n{% endmacro %}\n{{ m(1) }}\n",
    "a\n  {%- if true %}\n  b\n  {%- endif %}\nc",
    "  {{- s -}}  \n  x",
    "{% if true %}  {% if true %}\nx{% endif %}{% endif %}",
    "{{ s }}\n{% if true %}{% endif %}\n{{ s }}",
    "{% generation %}\nx\n{% endgeneration %}\ny",
    "   {% generation %}\n   x\n   {% endgeneration %}\ny",
    "{% for m in messages %}\n{% if m.role == 'user' %}\nU: {{ m.content }}\n{% elif m.role == 'system' %}\nS: {{ m.content }}\n{% else %}\n{% endif %}\n{% endfor %}\n",
    "\u00a0{% if true %}x{% endif %}\n\u2003 {% if true %}y{% endif %}",
    "a\u2028{% if true %}\u2028b{% endif %}",
    "{{ 'tab\there' }}\t{{ 'x' }}",
    "{% set a = 1 -%}\n\n{{ a }}\n{%- set b = 2 %}\n{{ b }}",
    "{%- set a -%}\n  x\n{%- endset -%}\n[{{ a }}]",
    "{% call raise_exception('x\ny') %}{% endcall %}",
    "line 1\nline 2 {{ undefinedvar.x }}\n",
]
